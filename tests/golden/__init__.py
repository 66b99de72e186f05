"""What 60 generated pictures come to, from their files to a served answer.

`golden.json` holds the values. A change of one of them is a commit of its own that says why:

    python -m tests.golden.record       writes the values anew, and prints which of them changed
"""
