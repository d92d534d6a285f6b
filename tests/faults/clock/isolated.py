"""Runs `python -I -S ...` with the clocks of sitecustomize.py, which isolation would keep out.

    python -I -S isolated.py INTERPRETER -I -S PROGRAM.pyz ARGUMENTS...      # or -c CODE ARGUMENTS...

INTERPRETER is what the program takes for its own: its children get the same clocks.
"""

import os
import runpy
import sys

runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "sitecustomize.py"))
sys.executable, words = sys.argv[1], sys.argv[2:]
while words[0] in ("-I", "-S"):
    words.pop(0)
if words[0] == "-c":
    sys.argv = ["-c", *words[2:]]
    exec(words[1], {"__name__": "__main__"})
else:
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
