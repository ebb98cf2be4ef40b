"""Make crafted inputs for every file reader: damaged, hostile, or of another kind. A seed repeats each input exactly.

A reader is tested with a folder of good files, functions that spoil them, and the call that reads them. `fuzz.py` runs
thousands of inputs, the tests run a few dozen per reader. There is a file here for each kind of input, and `readers.py`
lists all readers.
"""
