"""What tools/measure_house.py counts of a made-up package."""

from pathlib import Path

from tools.measure_house import Room, count, over_limits

SHAPES = """
class Shape:
    def area(self):
        return _square(2)

    def __len__(self):
        return 1


class Disc(Shape):
    def area(self):
        return 3 * _square(1)
"""
COMMANDS = """
from package.shapes.shapes import Shape


@app.command()
def draw():
    return _once(Shape())


def _once(shape):
    return shape.area()


def never():
    pass
"""


def written(package: Path) -> Path:
    (package / "shapes").mkdir(parents=True)
    (package / "shapes" / "shapes.py").write_text(
        SHAPES + "\n\ndef _square(x):\n    return x * x\n"
    )
    (package / "cli.py").write_text(COMMANDS)
    return package


def test_uses_are_counted_over_the_package_and_told_by_room(tmp_path: Path) -> None:
    rooms = count(written(tmp_path / "package"))

    # Counted: Shape.area (used once) and _square (twice); not __len__, not the override.
    assert (rooms["shapes"].functions, rooms["shapes"].private) == (2, 1)
    assert (rooms["shapes"].private_once, rooms["shapes"].public_once) == (0, 1)
    # Counted: _once (once) and never (not at all); a command's caller cannot be seen.
    assert (rooms["."].functions, rooms["."].private_once, rooms["."].public_once) == (2, 1, 0)
    assert (rooms["total"].files, rooms["total"].functions) == (2, 4)
    assert rooms["total"].once_percent == 50


def test_the_longest_function_is_named_with_its_file(tmp_path: Path) -> None:
    package = written(tmp_path / "package")
    (package / "long.py").write_text("def long():\n" + "    print()\n" * 99)

    rooms = count(package)

    assert (rooms["."].longest, rooms["."].longest_name) == (100, "long.py:long")


def test_what_is_over_the_limits_is_named_but_not_of_rooms_to_be_replaced() -> None:
    crowded = Room(functions=10, private_once=2, longest=91, longest_name="a.py:f")
    way = [[f"{n}.py", "f"] for n in range(9)]

    over = over_limits({"images": crowded, "heads": crowded, "total": crowded}, {"source": way})

    assert over == [
        "images: 20.0 % of functions used once, limit 15 %",
        "images: a.py:f has 91 lines, limit 90",
        "way of data.source: 9 files, limit 8",
    ]
    assert over_limits({"images": Room(functions=10)}, {"source": way[:8]}) == []
