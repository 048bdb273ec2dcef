"""Programs for python3 in the guest. They import only the standard library, and support Python 3.8."""
