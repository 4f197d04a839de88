"use strict";

// Everything shown goes through textContent: names come from other machines.

const refreshMillis = 2000;
const maxRows = 200; // a mesh has up to 10,000 peers; a page shows the first

const $ = (id) => document.getElementById(id);

function element(tag, text, className) {
  const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text;
  if (className) e.className = className;
  return e;
}

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let i = 0;
  while (n >= 1024 && i < units.length - 1) { n /= 1024; i++; }
  return (i === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)) + " " + units[i];
}

const count = (n) => n.toLocaleString("en-GB");

function ago(time) {
  const s = Math.max(0, (Date.now() - Date.parse(time)) / 1000);
  if (!Number.isFinite(s)) return "";
  if (s < 90) return Math.round(s) + " s";
  if (s < 5400) return Math.round(s / 60) + " min";
  if (s < 129600) return Math.round(s / 3600) + " h";
  return Math.round(s / 86400) + " d";
}

// rows fills a table body; a cell is text, or [text, class].
function rows(body, cells, empty) {
  const width = body.parentElement.querySelectorAll("th").length;
  const lines = cells.map((row) => {
    const tr = document.createElement("tr");
    for (const c of row) tr.append(Array.isArray(c) ? element("td", c[0], c[1]) : element("td", c));
    return tr;
  });
  if (lines.length === 0) {
    const td = element("td", empty, "quiet");
    td.colSpan = width;
    const tr = document.createElement("tr");
    tr.append(td);
    lines.push(tr);
  }
  body.replaceChildren(...lines);
}

function showBytes(s) {
  const f = s.fetched_bytes;
  const total = f.local + f.neighbour + f.origin;
  const parts = [["local", f.local], ["neighbour", f.neighbour], ["origin", f.origin]];
  parts.forEach(([name, n], i) => {
    $("bar").children[i].style.width = total ? (100 * n) / total + "%" : "0";
  });
  const list = parts.map(([name, n]) => [name, bytes(n), name]);
  const requests = Object.values(s.origin_requests).reduce((a, b) => a + b, 0);
  const corrupt = Object.values(s.corrupt_blocks).reduce((a, b) => a + b, 0);
  list.push(["asked of the origin", bytes(s.origin_bytes) + " in " + count(requests) + " requests"]);
  if (corrupt) list.push(["corrupt blocks refused", count(corrupt)]);
  $("bytes").replaceChildren(...list.map(([name, figure, dot]) => {
    const div = document.createElement("div");
    const dt = document.createElement("dt");
    if (dot) dt.append(element("i", undefined, dot));
    dt.append(name);
    div.append(dt, element("dd", figure));
    return div;
  }));
}

function showStatus(s) {
  $("state").textContent = s.ready ? "ready" : "starting: " + s.not_ready;
  $("state").className = "state " + (s.ready ? "good" : "bad");
  $("identity").textContent = [
    s.version, s.peer_id, s.standalone ? "standalone" : count(s.peers) + " peers",
    s.data_plane, "up " + ago(s.started),
  ].filter(Boolean).join(" · ");
  showBytes(s);
  rows($("tiers"), s.tiers.map((t) => [
    t.dir, [bytes(t.used_bytes), "n"], [bytes(t.budget_bytes), "n"], [count(t.objects), "n"],
    [count(t.blocks), "n"], t.state === "ok" ? ["ok", "good"] : [t.state + ": " + (t.why || "unknown"), "bad"],
  ]), "no cache directory");
  rows($("mounts"), s.mounts.map((m) => [
    m.dir, m.source, [count(m.opens_passthrough), "n"], [count(m.opens_daemon), "n"],
    m.passthrough ? ["on", "good"] : "off: " + (m.passthrough_why || "unknown"),
  ]), "nothing mounted");
}

function showPeers(peers) {
  rows($("peers"), peers.slice(0, maxRows).map((p) => [
    p.host, p.id.slice(-8), [p.zone, p.rack].filter(Boolean).join(" / "),
    [p.rtt_us ? (p.rtt_us / 1000).toFixed(2) + " ms" : "", "n"],
    [bytes(p.sent_bytes), "n"], [bytes(p.received_bytes), "n"], [count(p.errors), "n"],
    p.connected ? ["connected", "good"] : ["seen " + ago(p.last_seen) + " ago", "quiet"],
  ]), "no peers");
  $("more").textContent = peers.length > maxRows ? "and " + count(peers.length - maxRows) + " more" : "";
}

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(10000) });
  if (!answer.ok) throw new Error(path + " answered " + answer.status);
  return answer.json();
}

async function refresh() {
  if (!document.hidden) {
    try {
      const [status, peers] = await Promise.all([ask("/api/v1/status"), ask("/api/v1/peers")]);
      showStatus(status);
      showPeers(peers);
    } catch (err) {
      $("state").textContent = "no answer: " + err.message;
      $("state").className = "state bad";
    }
  }
  setTimeout(refresh, refreshMillis);
}

document.addEventListener("DOMContentLoaded", refresh);
