"""Run inside the guest by tests: something of everything that a view must show.

Prints ``workload: ready`` when all of it stands, then sleeps. Everything hangs on this process.
"""

import contextlib
import ctypes
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)
KEPT = []  # descriptors and sockets that must stay open
ROOT = "/tmp/workload"


def sleeper(name, uid=0, prepare=None):
    """A child that sleeps for good, called ``name``."""
    pid = os.fork()
    if pid:
        return pid
    libc.prctl(15, name.encode(), 0, 0, 0)
    if prepare:
        prepare()
    if uid:
        os.setgroups([uid, uid + 1])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    while True:
        signal.pause()


def processes():
    for i in range(150):
        sleeper(f"sleeper-{i}", uid=1000 + i % 3 if i % 2 else 0)
    sleeper("names with\tctl", uid=33)
    sleeper("Grüße", uid=65534)
    sleeper("leader", prepare=os.setsid)
    sleeper("nice", prepare=lambda: os.nice(7))
    sleeper("realtime", prepare=lambda: os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(11)))
    for _ in range(3):
        if os.fork() == 0:
            os._exit(3)  # never waited for: a zombie
    os.kill(sleeper("stopped"), signal.SIGSTOP)
    subprocess.Popen(["/bin/sleep", "100000"], cwd="/usr/share", env={"A": "b" * 5000})
    subprocess.Popen(["/bin/sh", "-c", "sleep 100001; true", "argument with spaces", ""])
    deep = ROOT + "/" + "/".join(["deep" * 10] * 20)
    os.makedirs(deep)
    subprocess.Popen(["/bin/sleep", "100002"], cwd=deep)
    subprocess.Popen(["/bin/cp", "/bin/sleep", ROOT + "/gone"]).wait()
    subprocess.Popen([ROOT + "/gone", "100003"])
    time.sleep(0.5)
    os.unlink(ROOT + "/gone")


def threads():
    def run():
        for i in range(20):
            thread = threading.Thread(target=time.sleep, args=(1e6,), name=f"worker{i}")
            thread.start()
            with open(f"/proc/self/task/{thread.native_id}/comm", "w") as file:
                file.write(f"worker-{i}")
        signal.pause()

    if os.fork() == 0:
        libc.prctl(15, b"threaded", 0, 0, 0)
        run()


def files():
    KEPT.append(os.open("/etc/passwd", os.O_RDONLY))
    KEPT.append(os.open("/usr/share", os.O_RDONLY | os.O_DIRECTORY))
    for name in ("plain", "with space", "new\nline", "back\\slash", "ümlaut", "x" * 255):
        fd = os.open(f"{ROOT}/{name}", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"0123456789")
        os.lseek(fd, 5, os.SEEK_SET)
        KEPT.append(fd)
    for name in ("deleted", "deleted again (deleted)"):
        fd = os.open(f"{ROOT}/{name}", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.unlink(f"{ROOT}/{name}")
        KEPT.append(fd)
    os.mkdir(f"{ROOT}/removed")
    KEPT.append(os.open(f"{ROOT}/removed", os.O_RDONLY))
    os.rmdir(f"{ROOT}/removed")
    KEPT.append(os.open(ROOT, os.O_PATH))
    KEPT.append(os.open("/dev/null", os.O_WRONLY))
    KEPT.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))
    KEPT.append(os.memfd_create("a memory file"))
    KEPT.extend(os.pipe())
    os.mkfifo(f"{ROOT}/fifo")
    KEPT.append(os.open(f"{ROOT}/fifo", os.O_RDWR))
    KEPT.append(select.epoll())
    KEPT.append(os.eventfd(3))
    KEPT.append(os.pidfd_open(os.getpid()))
    KEPT.append(libc.timerfd_create(1, 0))
    KEPT.append(libc.inotify_init())
    for namespace in ("net", "mnt", "pid", "uts"):
        KEPT.append(os.open(f"/proc/self/ns/{namespace}", os.O_RDONLY))
    KEPT.append(os.dup2(KEPT[0], 200))


def tcp(family, host):
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, 0))
    listener.listen(5)
    address = listener.getsockname()[:2]
    KEPT.append(listener)

    def pair():
        client = socket.create_connection(address)
        server, _ = listener.accept()
        KEPT.extend([client, server])
        return client, server

    pair()  # ESTABLISHED
    client, server = pair()
    client.send(b"unread" * 100)
    client, server = pair()
    client.shutdown(socket.SHUT_WR)  # FIN_WAIT2 and CLOSE_WAIT
    client, server = pair()
    client.close()
    server.close()  # TIME_WAIT
    KEPT.append(socket.create_connection(address))  # waits to be accepted


def syn_sent():
    """A listener whose queue is full: further connections stay in SYN_SENT."""
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    KEPT.append(full)
    for _ in range(4):
        client = socket.socket()
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.connect(full.getsockname())
        KEPT.append(client)


def sockets():
    tcp(socket.AF_INET, "127.0.0.1")
    tcp(socket.AF_INET6, "::1")
    syn_sent()
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    KEPT.append(bound)
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        udp = socket.socket(family, socket.SOCK_DGRAM)
        udp.bind((host, 0))
        connected = socket.socket(family, socket.SOCK_DGRAM)
        connected.connect(udp.getsockname()[:2])
        connected.send(b"not read yet")
        KEPT.extend([udp, connected, socket.socket(family, socket.SOCK_DGRAM)])
        KEPT.append(socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_ICMP))
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        for name in (f"{ROOT}/unix-{int(kind)}", f"\0abstract-{int(kind)}"):
            listener = socket.socket(socket.AF_UNIX, kind)
            listener.bind(name)
            listener.listen(3)
            client = socket.socket(socket.AF_UNIX, kind)
            client.connect(name)
            KEPT.extend([listener, client, listener.accept()[0]])
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    datagram.bind(f"{ROOT}/unix-dgram")
    KEPT.append(datagram)
    KEPT.extend(socket.socketpair())
    KEPT.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
    with contextlib.suppress(OSError):  # a module that not every kernel has
        KEPT.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))


def container():
    """Own mount, pid, network, uts and ipc namespaces; a cgroup; a listener inside."""
    group = "/sys/fs/cgroup/workload/inner group"
    with contextlib.suppress(OSError):
        os.makedirs(group, exist_ok=True)
    inside = (
        "import os, socket, subprocess, time\n"
        "subprocess.run(['ip', 'link', 'set', 'lo', 'up'])\n"
        "subprocess.run(['mount', '-t', 'tmpfs', 'inside', '/mnt'])\n"
        "subprocess.run(['hostname', 'container'])\n"
        "s = socket.socket(); s.bind(('127.0.0.1', 4242)); s.listen()\n"
        "f = open('/mnt/only inside', 'w')\n"
        "subprocess.Popen(['sleep', '100004'])\n"
        "open('/mnt/ready', 'w').close()\n"
        "print('inside', flush=True)\n"
        "time.sleep(1e6)\n"
    )
    unshare = ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--mount-proc"]
    process = subprocess.Popen(
        [*unshare, sys.executable, "-c", inside], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "inside\n"
    with contextlib.suppress(OSError), open(group + "/cgroup.procs", "w") as file:
        file.write(str(process.pid))


def maps():
    with open("/usr/bin/python3", "rb") as file:
        KEPT.append(mmap.mmap(file.fileno(), 8192, mmap.MAP_PRIVATE, mmap.PROT_READ))
    KEPT.append(mmap.mmap(-1, 1 << 20, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS))
    private = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    private[:16] = struct.pack("<QQ", 0x1122334455667788, os.getpid())
    KEPT.append(private)


def main():
    os.makedirs(ROOT)
    libc.prctl(15, b"workload", 0, 0, 0)
    for step in (processes, threads, container, files, sockets, maps):
        step()
    time.sleep(0.5)
    print("workload: ready", flush=True)
    while True:
        time.sleep(1000)


main()
