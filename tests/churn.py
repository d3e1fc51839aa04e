#!/usr/bin/env python3
"""Five agents for hours, with churn: does anything grow that should not?

    cargo build --release && MINUTES=120 tests/churn.py

Five agents in one group are written to all the time (records, events, tags, trash, and assets in the
first quarter), read from, watched, and connected to without a request. Every FAULT_S seconds one of
the devices 2 to 4 is killed, stopped in order or paused, and comes back; every GUEST_S seconds a sixth
device pairs with one of them, syncs and is removed. Devices 0 and 1 run through, so they show what
grows.

Prints a line a minute with the memory, descriptors, threads and disk of each agent. In the end all
must have the same, with everything that was acknowledged. A fault (exit 1): a write that was
acknowledged and is lost, a device that is not in step, an ERROR in a log, a journal that `journal fsck`
finds fault with, and for devices 0 and 1, the last quarter beside the second: more than RSS_MIB more
memory (median), more than SLACK more descriptors or threads (median), or a journal that grew by more
than BYTES_PER_WRITE for each write.

Linux; MINUTES, SEED, PACE (writes a second, all together) and CANSYNC choose another run.
"""
import hashlib, http.client, json, os, pathlib, random, shutil, signal, socket, statistics, subprocess, sys, tempfile, threading, time

BIN = os.environ.get("CANSYNC", str(pathlib.Path(__file__).resolve().parent.parent / "target/release/can-sync"))
MINUTES = float(os.environ.get("MINUTES", "120"))
SEED = int(os.environ.get("SEED", "0")) or random.randrange(1, 1 << 32)
PACE = float(os.environ.get("PACE", "25"))
DEVICES, RECORDS, FAULT_S, GUEST_S = 5, 200, 30, 240
RSS_MIB, SLACK, BYTES_PER_WRITE = 16, 8, 2048
IN_STEP_S = 300


class Fault(Exception):
    pass


class Agent:
    def __init__(self, root, name):
        self.name, self.home, self.log = name, root / name, root / f"{name}.log"
        self.up, self.starts = False, 0
        self.start()

    def start(self):
        env = {k: v for k, v in os.environ.items() if not k.startswith("CAN_SYNC_") and k != "RUST_LOG"}
        words = [BIN, "--home", self.home, "--json", "up", "--offline", "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=open(self.log, "ab"), env=env)
        line = self.process.stdout.readline()
        if not line.strip():
            raise Fault(f"{self.name} does not start: {self.log.read_text()[-2000:]}")
        self.address = json.loads(line)["api"].removeprefix("http://")
        self.token = (self.home / "api-token").read_text().strip()
        self.up, self.starts = True, self.starts + 1

    def stop(self, signal_number):
        self.up = False
        self.process.send_signal(signal_number)
        self.process.wait()
        self.process.stdout.close()

    def ask(self, method, path, body=None, kind="application/json", timeout=60):
        """Status and body; None when the answer did not come whole."""
        link = http.client.HTTPConnection(self.address, timeout=timeout)
        try:
            link.request(method, path, body, {"Authorization": f"Bearer {self.token}", "Content-Type": kind})
            answer = link.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            link.close()

    def get(self, path):
        answered = self.ask("GET", path)
        if not answered or answered[0] != 200:
            raise Fault(f"{self.name}: GET {path}: {answered}")
        return json.loads(answered[1])

    def pages(self, path, rows):
        after = ""
        while True:
            page = self.get(f"{path}?limit=500{after}")
            yield from page[rows]
            if not page.get("next") or page.get("more") is False:
                return
            after = f"&after={page['next']}"

    def run(self, *words, given=None):
        done = subprocess.run([BIN, "--home", self.home, *words], input=given, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise Fault(f"{self.name}: {words}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def figures(self):
        """Memory in MiB, descriptors, threads, journal bytes, bytes of everything; None while it is down."""
        try:
            proc = pathlib.Path(f"/proc/{self.process.pid}")
            status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
            fds = len(os.listdir(proc / "fd"))
            rss, threads = int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"])
        except (OSError, KeyError):
            return None
        journal = sum(file.stat().st_size for file in self.home.glob("journal.db*") if file.exists())
        blocks = int(subprocess.run(["du", "-sk", self.home], capture_output=True, text=True).stdout.split()[0])
        return rss, fds, threads, journal, blocks * 1024


class Writer(threading.Thread):
    """Writes what no other writes, and keeps what was acknowledged."""

    def __init__(self, number, agent, seed):
        super().__init__(daemon=True)
        self.number, self.agent, self.random = number, agent, random.Random(seed)
        self.n, self.acknowledged, self.refused = 0, 0, []
        self.records, self.gone, self.events, self.assets, self.tags = {}, set(), {}, {}, {}
        self.adding, self.stopped = True, False

    def run(self):
        while not self.stopped:
            time.sleep(self.random.uniform(0, 2 * DEVICES / PACE))
            if self.agent.up:
                self.write()

    def say(self, method, path, body=None, kind="application/json"):
        answered = self.agent.ask(method, path, body if kind != "application/json" or body is None else json.dumps(body), kind)
        if answered and answered[0] in (200, 201, 204):
            self.acknowledged += 1
            return json.loads(answered[1] or b"{}")
        if answered:
            self.refused.append(f"{method} {path}: {answered}")
        return None

    def write(self):
        self.n += 1
        n, dice = self.n, self.random.random()
        if dice < 0.45:
            name = f"{self.number}-{self.random.randrange(RECORDS)}"
            self.gone.discard(name)
            if self.say("PUT", f"/v1/records/churn/{name}", {"set": {"n": n}}):
                self.records[name] = n
        elif dice < 0.55 and self.records:
            name = self.random.choice(list(self.records))
            del self.records[name]
            if self.say("DELETE", f"/v1/records/churn/{name}") is not None:
                self.gone.add(name)
        elif dice < 0.65:
            data = {"by": self.number, "n": n}
            said = self.say("POST", "/v1/events/churn", {"type": "wrote", "data": data})
            if said:
                self.events[(said["log"], said["event_seqs"][0])] = data
        elif dice < 0.72 and self.adding:
            size = self.random.choice([0, 10, 1000, 60_000, 300_000, 900_000])
            content = self.random.randbytes(size) + b"%d %d" % (self.number, n)
            said = self.say("POST", "/assets", content, "application/octet-stream")
            if said:
                self.assets[said["hash"]] = hashlib.sha256(content).digest()
        elif dice < 0.9 and self.assets:
            name = self.random.choice(list(self.assets))
            tagged = self.tags.get(name) is True
            self.tags[name] = None
            if self.say("PATCH", f"/v1/assets/{name}/meta", {"remove" if tagged else "add": [f"t{self.number}"], "trashed": not tagged}):
                self.tags[name] = not tagged
        else:
            self.read()

    def read(self):
        what = self.random.randrange(4)
        if what == 0 and self.assets:
            name, digest = self.random.choice(list(self.assets.items()))
            answered = self.agent.ask("GET", f"/assets/{name}")
            if answered and (answered[0] != 200 or hashlib.sha256(answered[1]).digest() != digest):
                self.refused.append(f"asset {name}: {answered[0]}, {len(answered[1])} bytes")
        elif what == 1:
            self.agent.ask("GET", "/v1/records/churn?limit=200")
        else:
            # A watch that is left in the middle, or a connection on which nothing is asked.
            host, port = self.agent.address.rsplit(":", 1)
            try:
                with socket.create_connection((host, int(port)), 5) as link:
                    if what == 2:
                        link.sendall(f"GET /v1/watch HTTP/1.1\r\nHost: {self.agent.address}\r\nAuthorization: Bearer {self.agent.token}\r\n\r\n".encode())
                        link.settimeout(2)
                        link.recv(4096)
            except OSError:
                pass


def guest(root, agents, number, rng):
    """A device that pairs, syncs and is removed."""
    host = agents[rng.randrange(2)]
    newcomer = Agent(root, f"guest-{number}")
    try:
        newcomer.run("pair", given=host.run("--quiet", "ticket"))
        want, deadline = host.get("/v1/status")["store"]["assets"], time.monotonic() + IN_STEP_S
        while newcomer.get("/v1/status")["store"]["assets"] < want:
            if time.monotonic() > deadline:
                raise Fault(f"guest {number} did not get {want} assets")
            time.sleep(0.5)
        host.run("remove", newcomer.get("/v1/status")["device"]["node_id"])
    finally:
        newcomer.stop(signal.SIGTERM)
        shutil.rmtree(newcomer.home, ignore_errors=True)


def trouble(agent, rng):
    """One fault, and the device comes back."""
    what = rng.choice(["kill", "stop", "pause"])
    if what == "pause":
        agent.process.send_signal(signal.SIGSTOP)
        time.sleep(rng.uniform(1, 15))
        agent.process.send_signal(signal.SIGCONT)
    else:
        agent.stop(signal.SIGKILL if what == "kill" else signal.SIGTERM)
        time.sleep(rng.uniform(0, 5))
        agent.start()
    return what


def in_step(agents):
    deadline = time.monotonic() + IN_STEP_S
    while True:
        states = [agent.get("/v1/status") for agent in agents]
        clocks = {json.dumps(sorted((log["log"], log["seq"]) for log in agent.get("/v1/journal/stats")["logs"])) for agent in agents}
        if all(state["in_sync"] for state in states) and len(clocks) == 1 and len({state["store"]["assets"] for state in states}) == 1:
            return states[0]["store"]["assets"]
        if time.monotonic() > deadline:
            raise Fault(f"not in step: {json.dumps(states)[:4000]}")
        time.sleep(0.5)


def check(agent, writers):
    records = {row["id"]: row["fields"]["n"] for row in agent.pages("/v1/records/churn", "records")}
    events = {(row["log"], row["event_seq"]): row["data"] for row in agent.pages("/v1/events/churn", "events")}
    rows = {row["hash"]: row for row in map(json.loads, agent.run("--json", "ls", "--all").splitlines())}
    for writer in writers:
        for name, n in writer.records.items():
            if records.get(name, -1) < n:
                raise Fault(f"{agent.name}: record {name}: {records.get(name)}, not {n}")
        for name in writer.gone & records.keys():
            raise Fault(f"{agent.name}: record {name} is back")
        for number, data in writer.events.items():
            if events.get(number) != data:
                raise Fault(f"{agent.name}: event {number}: {events.get(number)}, not {data}")
        for name, digest in writer.assets.items():
            answered = agent.ask("GET", f"/assets/{name}")
            if not answered or answered[0] != 200 or hashlib.sha256(answered[1]).digest() != digest:
                raise Fault(f"{agent.name}: asset {name}: {answered and answered[0]}")
        for name, tagged in writer.tags.items():
            if tagged is not None and (f"t{writer.number}" in (rows[name]["tags"] or []), rows[name]["trashed"]) != (tagged, tagged):
                raise Fault(f"{agent.name}: asset {name} has {rows[name]['tags']}, trashed {rows[name]['trashed']}, not {tagged}")
    agent.run("journal", "fsck")


def grew(figures, writes):
    """What grew on a device that ran through, from the second quarter to the last."""
    quarter = len(figures) // 4
    if not quarter:
        return []
    early, late = figures[quarter:2 * quarter], figures[-quarter:]
    median = lambda rows, n: statistics.median(row[n] for row in rows)
    found = []
    for n, (what, most) in enumerate([("MiB of memory", RSS_MIB), ("descriptors", SLACK), ("threads", SLACK)]):
        if median(late, n) - median(early, n) > most:
            found.append(f"{what}: {median(early, n):.0f}, then {median(late, n):.0f}")
    written = max(1, writes[-1] - writes[quarter])
    per_write = (late[-1][3] - figures[quarter][3]) / written
    print(f"journal: {per_write:.0f} bytes for each of {written} writes", flush=True)
    if per_write > BYTES_PER_WRITE:
        found.append(f"journal: {per_write:.0f} bytes a write")
    return found


def main():
    root = pathlib.Path(tempfile.mkdtemp(prefix="churn-"))
    rng, agents, writers = random.Random(SEED), [], []
    print(f"SEED={SEED} MINUTES={MINUTES:g} PACE={PACE:g}", flush=True)
    try:
        for n in range(DEVICES):
            agents.append(Agent(root, f"device-{n}"))
            if n:
                agents[n].run("pair", given=agents[n - 1].run("--quiet", "ticket"))
        writers = [Writer(n, agent, SEED + n) for n, agent in enumerate(agents)]
        for writer in writers:
            writer.start()
        began = time.monotonic()
        end, next_line, next_fault, next_guest = began + MINUTES * 60, began, began + FAULT_S, began + GUEST_S / 2
        figures, writes, happened, guests = [[], []], [], {}, 0
        while time.monotonic() < end:
            now = time.monotonic()
            if now >= next_line:
                rows = [agent.figures() for agent in agents]
                total = sum(writer.acknowledged for writer in writers)
                for n in range(2):
                    figures[n].append(rows[n])
                writes.append(total)
                cells = [f"{r[0]:.0f} MiB {r[1]} fd {r[2]} th {r[3] / 2**20:.1f}+{(r[4] - r[3]) / 2**20:.1f} MiB" if r else "down" for r in rows]
                print(f"{(now - began) / 60:.0f} min, {total} writes | " + " | ".join(cells), flush=True)
                next_line += 60
            if now - began > MINUTES * 15:
                for writer in writers:
                    writer.adding = False
            if now >= next_fault:
                what = trouble(agents[rng.randrange(2, DEVICES)], rng)
                happened[what] = happened.get(what, 0) + 1
                next_fault = time.monotonic() + FAULT_S
            elif now >= next_guest:
                guests += 1
                guest(root, agents, guests, rng)
                next_guest = time.monotonic() + GUEST_S
            refused = [what for writer in writers for what in writer.refused]
            if refused:
                raise Fault(f"refused: {refused[:5]}")
            time.sleep(0.2)
        for writer in writers:
            writer.stopped = True
        for writer in writers:
            writer.join()
        assets = in_step(agents)
        for agent in agents:
            check(agent, writers)
        for agent in agents:
            agent.stop(signal.SIGTERM)
        loud = [line for log in root.glob("*.log") for line in log.read_text().splitlines() if " ERROR " in line or "panicked" in line]
        if loud:
            raise Fault(f"in the logs: {loud[:5]}")
        found = [f"device {n}: {what}" for n in range(2) for what in grew(figures[n], writes)]
        print(f"{MINUTES:g} minutes, {sum(w.acknowledged for w in writers)} writes acknowledged, {assets} assets, {guests} guests, faults: {happened}")
        if found:
            raise Fault(f"grew: {found}")
        print("nothing lost, nothing grew")
        shutil.rmtree(root)
    except Fault as fault:
        print(f"WRONG: {fault}\nThe homes and logs are kept in {root}")
        sys.exit(1)
    finally:
        for agent in agents:
            if agent.process.poll() is None:
                agent.process.kill()
                agent.process.wait()


main()
