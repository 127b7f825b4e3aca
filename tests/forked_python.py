"""An interpreter for subprocesses of tests that costs no imports: each is forked from a server that has imported
torch, transformers, diffusers and this project, and ends like any other. It is another process with the arguments,
environment, folder and standard streams that it was given, but sees what is read at import, such as HF_HOME, as the
server did. Its `sys.executable` leads here again, so that the processes of `accelerate launch` are forked, too.

    python forked_python.py serve ADDRESS FRONT           # until its standard input ends
    python -IS forked_python.py run ADDRESS ARGUMENTS...  # what FRONT executes, in place of an interpreter
"""

import json
import os
import signal
import socket
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

PRELOADED = ("accelerate.commands.launch", "torch.distributed.run", "aim_hf.training.trainer", "aim_hf.rl.trainer")
PRELOADED += ("aim_hf.training.samples", "aim_hf.tiny.vae", "aim_hf.tiny.text_encoder", "aim_hf.evaluation.evaluate")
PRELOADED += ("aim_hf.data.collection", "aim_hf.data.preview", "aim_hf.envs.tabletop")


@contextmanager
def forked_python(folder: Path):
    """The path of the interpreter, `folder`/python. Beside it lies the command aim-hf."""
    import subprocess

    address, front = str(folder / "socket"), folder / "python"
    run = f'"{sys.executable}" -IS "{__file__}" run "{address}"'
    for path, command in ((front, run), (folder / "aim-hf", f'"{front}" -m aim_hf')):
        path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        path.chmod(0o755)
    command = [sys.executable, __file__, "serve", address, front]
    # Asking the driver for GPUs would leave it unusable in what is forked.
    environment = os.environ | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as server:
        assert server.stdout.readline() == b"ready\n"
        yield str(front)
        server.stdin.close()


def run(address: str, arguments: list[str]) -> None:
    """Has a process forked, hands signals on to it and ends as it ends."""
    request = json.dumps({"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [len(request).to_bytes(4)], [0, 1, 2])
        server.sendall(request)
        process = int.from_bytes(server.recv(4))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: os.kill(process, number))
        code = int.from_bytes(server.recv(4), signed=True)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def serve(address: str) -> tuple[dict, list[int]]:
    """Forks a process for each request; one whose caller was killed is killed. Returns in the processes, with the
    request and its standard streams."""
    import select

    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    print("ready", flush=True)
    callers: dict[int, socket.socket] = {}
    while True:
        readable, _, _ = select.select([0, listening, woken, *callers.values()], [], [])
        if 0 in readable:
            os._exit(0)
        for process in [process for process, caller in callers.items() if caller in readable]:
            os.kill(process, signal.SIGKILL)
        if woken in readable:
            woken.recv(4096)
        while callers and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            with suppress(OSError), callers.pop(ended[0]) as caller:
                caller.sendall(os.waitstatus_to_exitcode(ended[1]).to_bytes(4, signed=True))
        if listening in readable:
            caller, _ = listening.accept()
            size, streams, *_ = socket.recv_fds(caller, 4, 3)
            request = json.loads(caller.recv(int.from_bytes(size), socket.MSG_WAITALL))
            if (process := os.fork()) == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for other in (listening, woken, waker, caller, *callers.values()):
                    other.close()
                return request, streams
            callers[process] = caller
            caller.sendall(process.to_bytes(4))
            for stream in streams:
                os.close(stream)


def become(request: dict, streams: list[int], front: str) -> None:
    """Runs the module or script of the request as an interpreter would. Other requests get a new interpreter."""
    import runpy

    import torch

    for stream, number in zip(streams, range(3)):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    arguments = [argument for argument in request["arguments"][:1] if argument != "-u"] + request["arguments"][1:]
    if not arguments or (arguments[0].startswith("-") and arguments[0] != "-m"):
        os.execv(sys.executable, [sys.executable, *request["arguments"]])
    sys.executable = front
    module = arguments.pop(0) if arguments[0] == "-m" else None
    first = os.getcwd() if module else str(Path(arguments[0]).parent.resolve())
    sys.path[:1] = [first, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = arguments
    if module:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    step, address, *rest = sys.argv[1:]
    if step == "run":
        run(address, rest)
    else:
        import gc
        from importlib import import_module

        for name in PRELOADED:
            import_module(name)
        gc.freeze()  # what is shared by all stays shared
        become(*serve(address), *rest)
