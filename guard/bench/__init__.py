"""How good and how fast the guard is: labelled files in, figures out, and what others have published beside them."""
