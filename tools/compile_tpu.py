"""The former name of compile_ahead.py, which takes the same arguments."""

from compile_ahead import cli, main

if __name__ == '__main__':
  cli.run(main)
