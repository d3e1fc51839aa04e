// What moves on the page. Every view works without it: it shows times as people here write them,
// replaces the parts marked `data-live` when the agent says that something changed, fetches more assets
// as they are scrolled to, and sends dropped files.
"use strict";

(() => {
  const csrf = document.querySelector('meta[name="csrf"]')?.content;
  const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

  // ---- parts that were just put into the page

  function enliven(root) {
    for (const time of root.querySelectorAll("time[datetime]")) {
      const date = new Date(time.dateTime);
      if (!Number.isNaN(date.valueOf())) time.textContent = moment.format(date);
    }
    for (const button of root.querySelectorAll("[data-copy]")) button.hidden = false;
  }

  function countDown() {
    for (const clock of document.querySelectorAll("[data-countdown]")) {
      const left = Math.max(0, Math.floor((Number(clock.dataset.countdown) - Date.now()) / 1000));
      clock.textContent = `${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}`;
      if (left === 0) refresh();
    }
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const field = document.getElementById(button.dataset.copy);
    field.select();
    await navigator.clipboard.writeText(field.value);
    button.textContent = "Copied";
  });

  // ---- live parts

  const REACHED = "a, button, input, select, summary, textarea";
  const shown = new Map();
  let isRefreshing = false;
  let isStale = false;

  async function fetched(url) {
    const answer = await fetch(url, { headers: { "x-refresh": "1" } });
    if (answer.status === 401) location.reload();
    if (!answer.ok) throw new Error(answer.statusText);
    return new DOMParser().parseFromString(await answer.text(), "text/html");
  }

  async function refresh() {
    if (isRefreshing) {
      isStale = true;
      return;
    }
    isRefreshing = true;
    try {
      const next = await fetched(location.href);
      for (const part of next.querySelectorAll("[data-live][id]")) replace(part);
    } catch {
      // The agent is stopping or busy: the next notice tries again.
    }
    isRefreshing = false;
    if (isStale) {
      isStale = false;
      refresh();
    }
  }

  function replace(part) {
    const here = document.getElementById(part.id);
    const text = part.outerHTML;
    if (!here || shown.get(part.id) === text) return;
    const focused = document.activeElement;
    const reached = here.contains(focused) ? [...here.querySelectorAll(REACHED)] : [];
    const at = reached.indexOf(focused);
    // What somebody is writing stays.
    if (at >= 0 && focused.matches("input, select, textarea:not([readonly])")) return;
    shown.set(part.id, text);
    // What somebody has unfolded stays open.
    const open = [...here.querySelectorAll("details")].map((details) => details.open);
    here.className = part.className;
    here.replaceChildren(...part.childNodes);
    here.querySelectorAll("details").forEach((details, at) => { details.open = open[at] ?? details.open; });
    enliven(here);
    if (at >= 0) here.querySelectorAll(REACHED)[at]?.focus();
  }

  let notices = null;

  function listen() {
    if (notices || !csrf || document.hidden || !document.querySelector("[data-live]")) return;
    notices = new EventSource("/live");
    notices.addEventListener("changed", refresh);
    notices.addEventListener("error", () => {
      if (notices?.readyState !== EventSource.CLOSED) return;
      notices = null;
      setTimeout(listen, 5000);
    });
  }

  // A browser has few connections to a server: tabs that nobody looks at take none.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      notices?.close();
      notices = null;
    } else {
      listen();
      if (document.querySelector("[data-live]")) refresh();
    }
  });

  // ---- forms whose answer takes long, while the page shows what to do meanwhile

  document.addEventListener("submit", async (event) => {
    const form = event.target;
    if (!form.dataset.busy) return;
    event.preventDefault();
    const button = form.querySelector("button");
    const note = form.querySelector(".waiting") ?? form.appendChild(document.createElement("p"));
    note.className = "waiting quiet";
    note.setAttribute("role", "status");
    note.textContent = form.dataset.busy;
    button.disabled = true;
    try {
      const body = new URLSearchParams(new FormData(form));
      const answer = await fetch(form.action, { method: "POST", body, redirect: "manual" });
      if (answer.type === "opaqueredirect") {
        location.reload();
        return;
      }
      const refusal = new DOMParser().parseFromString(await answer.text(), "text/html");
      note.textContent = refusal.querySelector("main p")?.textContent ?? "That did not work.";
    } catch {
      note.textContent = "The agent did not answer. Is it running?";
    }
    note.className = "waiting problem";
    button.disabled = false;
  });

  // ---- assets: more of them, and only those that are near

  const far = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) fill(target);
      else if (target.firstChild && !target.contains(document.activeElement)) {
        target.style.height = `${target.offsetHeight}px`;
        target.replaceChildren();
      }
    }
  }, { rootMargin: "3000px 0px" });

  async function fill(section) {
    if (section.firstChild || section.dataset.busy) return;
    section.dataset.busy = "1";
    try {
      const page = await fetched(section.dataset.page);
      section.replaceChildren(...page.querySelector(".assets").childNodes);
      section.style.height = "";
      enliven(section);
    } catch {
      // It is tried again when it comes near the next time.
    }
    delete section.dataset.busy;
  }

  const end = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) if (isIntersecting) more(target);
  }, { rootMargin: "1500px 0px" });

  async function more(link) {
    end.unobserve(link);
    try {
      const page = await fetched(link.href);
      const parts = page.querySelectorAll(".assets, a.more, .end");
      for (const part of parts) enliven(part);
      link.replaceWith(...parts);
      watchAssets();
    } catch {
      // The link still leads there.
    }
  }

  function watchAssets() {
    for (const section of document.querySelectorAll(".assets")) far.observe(section);
    for (const link of document.querySelectorAll("a.more[rel=next]")) end.observe(link);
  }

  document.addEventListener("keydown", (event) => {
    const tile = event.target.closest?.(".tile");
    if (!tile || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const tiles = [...document.querySelectorAll(".tile")];
    const at = tiles.indexOf(tile);
    const columns = getComputedStyle(tile.closest(".grid")).gridTemplateColumns.split(" ").length;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
    const next = tiles[at + steps[event.key]];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });

  // ---- files that are dropped or chosen

  const drop = document.getElementById("drop");
  const uploads = document.getElementById("uploads");
  const queue = [];
  let sending = 0;
  const done = { files: 0, all: 0, bytes: 0, allBytes: 0 };
  let line = null;

  function take(files) {
    if (!files.length) return;
    if (!line) {
      line = uploads.appendChild(document.createElement("li"));
      line.append(document.createElement("span"), document.createElement("progress"));
      line.lastChild.setAttribute("aria-label", "Adding files");
    }
    for (const file of files) {
      queue.push(file);
      done.all += 1;
      done.allBytes += file.file.size;
    }
    for (; sending < 2 && queue.length; sending += 1) send(queue.shift());
    tell(0);
  }

  function tell(underWay) {
    line.lastChild.max = Math.max(1, done.allBytes);
    line.lastChild.value = done.bytes + underWay;
    if (done.files < done.all) {
      line.firstChild.textContent = `Adding ${done.files + 1} of ${done.all}`;
      return;
    }
    if (done.all === 0) {
      line.remove();
    } else {
      line.firstChild.textContent = done.all === 1 ? "1 file was added." : `${done.all} files were added.`;
      const link = document.createElement("a");
      link.href = "/browse";
      link.textContent = "Show them";
      line.lastChild.replaceWith(link);
    }
    line = null;
    Object.assign(done, { files: 0, all: 0, bytes: 0, allBytes: 0 });
  }

  function send({ file, path }) {
    const query = new URLSearchParams({ name: file.name, modified_ms: String(file.lastModified) });
    if (path) query.set("path", path);
    const request = new XMLHttpRequest();
    request.open("POST", `/add?${query}`);
    request.setRequestHeader("x-csrf", csrf);
    request.setRequestHeader("content-type", file.type || "application/octet-stream");
    request.upload.addEventListener("progress", (event) => line && tell(event.loaded));
    request.addEventListener("loadend", () => {
      sending -= 1;
      done.files += 1;
      done.bytes += file.size;
      if (request.status !== 200 && request.status !== 201) fail(file, request);
      if (queue.length) {
        sending += 1;
        send(queue.shift());
      }
      tell(0);
    });
    request.send(file);
  }

  function fail(file, request) {
    let why = "the agent did not answer";
    try {
      why = JSON.parse(request.responseText).detail;
    } catch {
      // It was cut off.
    }
    const item = uploads.appendChild(document.createElement("li"));
    item.className = "problem";
    item.textContent = `${file.name} was not added: ${why}`;
    done.files -= 1;
    done.all -= 1;
  }

  async function filesOf(entry, path) {
    if (entry.isFile) {
      const file = await new Promise((good, bad) => entry.file(good, bad));
      return [{ file, path }];
    }
    const reader = entry.createReader();
    const inside = path ? `${path}/${entry.name}` : entry.name;
    const all = [];
    for (;;) {
      const some = await new Promise((good, bad) => reader.readEntries(good, bad));
      if (!some.length) return all;
      for (const next of some) all.push(...await filesOf(next, inside));
    }
  }

  if (drop) {
    drop.hidden = false;
    document.getElementById("files").addEventListener("change", (event) => {
      take([...event.target.files].map((file) => ({ file, path: "" })));
      event.target.value = "";
    });
    const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
    addEventListener("dragover", (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      document.body.classList.add("dragging");
    });
    addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) document.body.classList.remove("dragging");
    });
    addEventListener("drop", async (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      document.body.classList.remove("dragging");
      const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
      if (!entries.length) {
        take([...event.dataTransfer.files].map((file) => ({ file, path: "" })));
        return;
      }
      for (const entry of entries) take(await filesOf(entry, ""));
    });
  }

  // ---- start

  for (const part of document.querySelectorAll("[data-live][id]")) shown.set(part.id, part.outerHTML);
  enliven(document);
  watchAssets();
  listen();
  setInterval(countDown, 1000);
})();
