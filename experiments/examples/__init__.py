"""Five small programs, each of which trains something with a structured polytope and draws a picture."""
