#!/usr/bin/env python3
"""What proofs, repair and knowing the holders cost.

    cargo build --release && tests/copies_figures.py proofs repair memory

  proofs  two devices: proofs a second of SMALL assets of 1 KB, and of one asset of LARGE_MIB
  repair  two devices: one bit of an asset of REPAIR_MIB rots; the time until `verify` has found it and it
          is whole again, the bytes that crossed, and the time of `verify` alone
  memory  five devices, of which one holds ASSETS assets and the others want none of them: the memory of
          the holder alone, and with four devices whose holdings it knows

Prints a line for each figure, with the load of the machine; exits 1 if something is wrong. Linux, like
CANSYNC, which chooses the program. REPAIR_MIB=40960 is 40 GiB, and needs three times that on the disk.
"""
import hashlib, http.client, json, os, pathlib, shutil, signal, struct, subprocess, sys, tempfile, time

BIN = os.environ.get("CANSYNC", str(pathlib.Path(__file__).resolve().parent.parent / "target/release/can-sync"))
SMALL = int(os.environ.get("SMALL", "20000"))
LARGE_MIB = int(os.environ.get("LARGE_MIB", "2048"))
REPAIR_MIB = int(os.environ.get("REPAIR_MIB", "4096"))
ASSETS = int(os.environ.get("ASSETS", "1000000"))
BATCH = 512


class Agent:
    def __init__(self, root, name):
        self.home, self.log = root / name, root / f"{name}.log"
        env = {k: v for k, v in os.environ.items() if not k.startswith("CAN_SYNC_") and k != "RUST_LOG"}
        words = [BIN, "--home", self.home, "--json", "up", "--offline", "--listen", "127.0.0.1:0", "--scrub-rate", "off"]
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=open(self.log, "ab"), env=env)
        self.address = json.loads(self.process.stdout.readline())["api"].removeprefix("http://")
        self.token = (self.home / "api-token").read_text().strip()

    def run(self, *words, given=None, may_fail=False):
        words = [BIN, "--home", self.home, *map(str, words)]
        done = subprocess.run(words, input=given, capture_output=True, text=True)
        if done.returncode and not may_fail:
            sys.exit(f"{words}: exit {done.returncode}: {done.stderr.strip()} {done.stdout[-500:]}")
        return done.stdout

    def ask(self, method, path, body=None, kind="application/json"):
        link = http.client.HTTPConnection(self.address, timeout=600)
        link.request(method, path, body, {"Authorization": f"Bearer {self.token}", "Content-Type": kind})
        answer = link.getresponse()
        told = answer.read()
        if answer.status >= 300:
            sys.exit(f"{method} {path}: {answer.status} {told[:500]}")
        return told

    def status(self):
        return json.loads(self.ask("GET", "/v1/status"))

    def memory_mib(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def told(what):
    print(f"{what}  (load {os.getloadavg()[0]:.1f})", flush=True)


def pair(one, other):
    ticket = one.run("--quiet", "ticket").strip()
    other.run("pair", given=f"{ticket}\n")


def until(what, seconds, holds):
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            sys.exit(f"not in {seconds} s: {what}")
        time.sleep(0.2)


def varint(n):
    out = b""
    while n > 0x7F:
        out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
    return out + bytes([n])


def add_small(agent, first, count, size_bytes):
    """Adds many small contents. A bundle's content is its field 2, and bundles are field 1 of the batch."""
    for start in range(first, first + count, BATCH):
        body = b""
        for n in range(start, min(start + BATCH, first + count)):
            content = hashlib.shake_128(struct.pack("<Q", n)).digest(size_bytes)
            bundle = b"\x12" + varint(len(content)) + content
            body += b"\x0a" + varint(len(bundle)) + bundle
        agent.ask("POST", "/v1/ingest", body, "application/x-protobuf")


def add_large(agent, root, mib):
    path = root / "large.bin"
    with open(path, "wb") as file:
        for n in range(mib):
            file.write(hashlib.shake_128(struct.pack("<Q", n)).digest(4096) * 256)
    agent.run("--quiet", "add", path)
    path.unlink()
    with os.scandir(agent.home / "store" / "content") as folders:
        files = [file for folder in folders for file in pathlib.Path(folder.path).iterdir() if not file.suffix]
    return max(files, key=lambda file: file.stat().st_size)


def two(root):
    one, other = Agent(root, "one"), Agent(root, "other")
    pair(one, other)
    return one, other


def same(one, other, seconds):
    count = one.status()["store"]["assets"]
    until("in sync", seconds, lambda: other.status()["store"]["assets"] == count and other.status()["in_sync"])


def proofs(root):
    one, other = two(root)
    add_small(one, 0, SMALL, 1000)
    same(one, other, 600)
    start = time.monotonic()
    one.run("--quiet", "safe", "--all", "--copies", 1)
    took = time.monotonic() - start
    told(f"proofs of small assets: {SMALL / took:.0f} a second ({SMALL} of 1,000 bytes in {took:.1f} s)")
    content = add_large(one, root, LARGE_MIB)
    same(one, other, 1200)
    start = time.monotonic()
    one.run("--quiet", "safe", content.name, "--copies", 1)
    took = time.monotonic() - start
    told(f"proof of an asset of {LARGE_MIB} MiB: {took:.2f} s, {LARGE_MIB / took:.0f} MiB/s on both devices at once")
    one.stop(), other.stop()


def repair(root):
    one, other = two(root)
    content = add_large(one, root, REPAIR_MIB)
    same(one, other, 3600)
    start = time.monotonic()
    one.run("--quiet", "verify", content.name)
    told(f"verify of {REPAIR_MIB} MiB, whole: {time.monotonic() - start:.2f} s")
    before = one.status()
    with open(content, "r+b") as file:
        file.seek(REPAIR_MIB << 19)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    start = time.monotonic()
    one.run("--quiet", "verify", content.name)
    took = time.monotonic() - start
    received = lambda status: sum(peer["received_bytes"] for peer in status["peers"])
    crossed = received(one.status()) - received(before)
    told(f"found, mended and verified, {REPAIR_MIB} MiB with one wrong bit: {took:.2f} s, {crossed} content bytes crossed")
    one.run("--quiet", "verify", content.name)
    one.stop(), other.stop()


def memory(root):
    devices = [Agent(root, f"device{n}") for n in range(5)]
    holder = devices[0]
    add_small(holder, 0, ASSETS, 32)
    until("all are taken in", 3600, lambda: holder.status()["store"]["assets"] == ASSETS)
    time.sleep(10)
    alone = holder.memory_mib()
    told(f"memory of a device that holds {ASSETS} assets, alone: {alone:.1f} MiB")
    for other in devices[1:]:
        other.run("--quiet", "want", "name=*.none")
        pair(holder, other)
    def is_known(device):
        status = device.status()
        return status["in_sync"] and status["copies"]["unwanted"] == ASSETS
    until("all know of all", 7200, lambda: all(is_known(device) for device in devices[1:]))
    census = lambda: (holder.status()["copies"].get("census") or {})
    until("they are confirmed", 3600, lambda: census().get("one_copy") == ASSETS)
    told(f"with four devices that hold none of them: {holder.memory_mib():.1f} MiB, {holder.memory_mib() - alone:.1f} more")
    for device in devices[1:]:
        told(f"a device that only knows them: {device.memory_mib():.1f} MiB")
    for device in devices:
        device.stop()


def main():
    figures = {"proofs": proofs, "repair": repair, "memory": memory}
    chosen = sys.argv[1:] or ["proofs", "repair"]
    if unknown := [name for name in chosen if name not in figures]:
        sys.exit(f"unknown figures {unknown}: expected some of {list(figures)}")
    for name in chosen:
        root = pathlib.Path(tempfile.mkdtemp(prefix="can-sync-figures-"))
        try:
            figures[name](root)
            for log in root.glob("*.log"):
                if any(" ERROR " in line for line in log.read_text().splitlines()):
                    sys.exit(f"{log.name} has errors: {log.read_text()[-2000:]}")
        finally:
            shutil.rmtree(root)


main()
