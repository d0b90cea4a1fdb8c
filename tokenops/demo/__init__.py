"""The demo: the pocket model answers with fewer and fewer visual tokens.

:mod:`tokenops.demo.run` holds it together; ``tokenops demo`` shows it in a terminal.
"""
