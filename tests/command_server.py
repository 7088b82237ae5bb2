"""Imports what takes long and forks a process for each command that it is asked for, until nobody can ask any more.

The arguments are the number of a socket and the modules to import. A message is JSON, `arguments` as of Python, `cwd`
and `environment`, and has with it the files that become the standard ones, and one into which the process's id and, on
another line, its exit code are written.
Begin at `receive`.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time

MAX_MESSAGE_BYTES = 1 << 20
FILES = 4


def receive(asked):
    """Wait for a command and return it, in a process of its own."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for commands
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends when pytest does
    while True:
        message, files, _, _ = socket.recv_fds(asked, MAX_MESSAGE_BYTES, FILES)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            asked.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            command = os.fork()
            if command == 0:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                return json.loads(message), files
            os.write(files[-1], f"{command}\n".encode())
            _, status = os.waitpid(command, 0)
            os.write(files[-1], str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
        for file in files:
            os.close(file)


def become(environment, cwd, files):
    """Take on what belongs to a process."""
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(cwd)
    sys.path[0] = cwd


def main():
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)  # a command is short, and collecting takes a twelfth of what dbt does
    command, files = receive(socket.socket(fileno=int(sys.argv[1])))
    become(command["environment"], command["cwd"], files)
    kind, what, *more = command["arguments"]
    if kind == "-m":
        sys.argv = [what, *more]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [kind, *more]
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main()
