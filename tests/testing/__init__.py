"""What tests share: made-up checkpoints, packages and servers, ways to run phipipe, and an oracle.

``places`` knows where things lie, ``clock`` how long they may take. ``shell`` runs the command
line, ``drive`` programs inside toolchains, ``workers`` and ``plans`` single steps and graphs of
them. ``oracle`` computes with numpy and transformers alone what phipipe is held against.
"""
