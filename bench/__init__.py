"""`make bench`: everything side by side in one run, from outside, on this machine. Not part of the package."""
