"""The one decode: encoded bytes → RGB uint8 pixels; colour, resizing, verified reading."""
