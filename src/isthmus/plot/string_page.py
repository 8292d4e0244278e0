"""``write_string_page``: strings to turn in the hand, in one HTML file that fetches nothing."""

from __future__ import annotations

from html import escape
from math import isfinite
from pathlib import Path
from typing import Any

from isthmus.plot.figures import svg_text
from isthmus.plot.html import data_and_script, html_page
from isthmus.plot.string import COLOURS, Strings, draw_string
from isthmus.storage.files import write_text

_CSS = """
:root { color-scheme: light dark; --ground: #f6f7f8; --card: #ffffff; --ink: #1d2329; --soft: #59636e;
  --line: #dde1e6; --wall: #c3c9cf; --accent: #0b6bb0; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181c; --card: #1c2127; --ink: #e4e8ec; --soft: #a1abb6;
  --line: #343b44; --wall: #4a525c; --accent: #6cb8f0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Liberation Sans", sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.4rem; margin: 0 0 .6rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.2rem; }
canvas { display: block; width: 100%; height: 540px; cursor: grab; touch-action: none; }
canvas:active { cursor: grabbing; }
.controls { display: flex; flex-wrap: wrap; gap: .6rem 1rem; align-items: center; }
input[type=range] { flex: 1; min-width: 10rem; accent-color: var(--accent); }
button { font: inherit; color: inherit; background: var(--ground); border: 1px solid var(--line); border-radius: 6px;
  padding: .15rem .8rem; cursor: pointer; }
.title { font-weight: 600; min-height: 1.6em; margin: .5rem 0 0; }
.scale { display: flex; align-items: center; gap: .6rem; font-size: .85rem; color: var(--soft); margin-top: .6rem; }
.bar { position: relative; flex: 1; height: 12px; border-radius: 6px; }
.mark { position: absolute; top: -4px; width: 2px; height: 20px; background: var(--ink); }
.note { color: var(--soft); font-size: .88rem; margin-top: .8rem; }
noscript svg { width: 100%; height: auto; background: #ffffff; }
"""

_SCRIPT = """
"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const canvas = document.getElementById("view"), pen = canvas.getContext("2d");
  const slider = document.getElementById("frame"), title = document.getElementById("title");
  const play = document.getElementById("play"), turn = document.getElementById("turn");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  let azimuth = -0.9, height = 0.42, zoom = 1, current = data.frames.length - 1, timer = null, turning = null;
  const stops = data.colours.map((c) => [1, 3, 5].map((i) => parseInt(c.slice(i, i + 2), 16)));
  function colour(loss) {
    const [low, high] = data.limits.map(Math.log);
    const u = loss === null ? 1 : Math.min(1, Math.max(0, (Math.log(Math.max(loss, 1e-300)) - low) / (high - low)));
    const s = u * (stops.length - 1), i = Math.min(stops.length - 2, Math.floor(s)), f = s - i;
    return "rgb(" + stops[i].map((v, k) => Math.round(v + f * (stops[i + 1][k] - v))).join(",") + ")";
  }
  function projector() {
    const w = canvas.clientWidth, h = canvas.clientHeight;
    const size = 0.56 * Math.min(w, h) * zoom / Math.hypot(...data.box);
    const ca = Math.cos(azimuth), sa = Math.sin(azimuth), ch = Math.cos(height), sh = Math.sin(height);
    return (p) => {
      const x = ca * p[0] - sa * p[1], y = sa * p[0] + ca * p[1];
      const depth = ch * y - sh * p[2], up = sh * y + ch * p[2], near = 4.5 / (4.5 + depth);
      return [w / 2 + size * near * x, 0.46 * h - size * near * up, depth];
    };
  }
  function path(points, at) {
    pen.beginPath();
    points.forEach((p, i) => { const q = at(p); if (i) pen.lineTo(q[0], q[1]); else pen.moveTo(q[0], q[1]); });
  }
  function draw() {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const frame = data.frames[current], at = projector(), box = data.box;
    // the walls behind the string: on each axis the side that is further away
    const far = [0, 1, 2].map((k) => {
      const e = [0, 0, 0]; e[k] = 1;
      return at(e)[2] > at(e.map((v) => -v))[2] ? box[k] : -box[k];
    });
    for (let k = 0; k < 3; k++) {
      const i = (k + 1) % 3, j = (k + 2) % 3;
      const corner = (u, v) => { const p = [0, 0, 0]; p[k] = far[k]; p[i] = u; p[j] = v; return p; };
      pen.strokeStyle = css("--line");
      pen.lineWidth = 1;
      for (let g = -2; g <= 2; g++) {
        path([corner(g * box[i] / 2, -box[j]), corner(g * box[i] / 2, box[j])], at); pen.stroke();
        path([corner(-box[i], g * box[j] / 2), corner(box[i], g * box[j] / 2)], at); pen.stroke();
      }
      pen.strokeStyle = css("--wall");
      pen.lineWidth = 1.4;
      path(frame.points.map((p) => { const q = p.slice(); q[k] = far[k]; return q; }), at);
      pen.stroke();
    }
    pen.fillStyle = css("--soft");
    pen.font = "12px system-ui, sans-serif";
    pen.textAlign = "center";
    [[0, [0, -far[1], far[2]]], [1, [-far[0], 0, far[2]]], [2, [far[0], -far[1], 0]]].forEach(([k, p]) => {
      const q = at(p.map((v, n) => (n === k ? v : v * 1.16)));
      pen.fillText("direction " + (k + 1) + " (" + data.variance[k] + " %)", q[0], q[1]);
    });
    const seen = frame.points.map(at), pieces = [];
    for (let i = 0; i + 1 < seen.length; i++) pieces.push([seen[i][2] + seen[i + 1][2], i]);
    pieces.sort((p, q) => q[0] - p[0]);
    pen.lineWidth = 3.2;
    pen.lineCap = "round";
    for (const [, i] of pieces) {
      const l = frame.loss[i], r = frame.loss[i + 1];
      pen.strokeStyle = colour(l === null || r === null ? null : Math.max(l, r));
      pen.beginPath(); pen.moveTo(seen[i][0], seen[i][1]); pen.lineTo(seen[i + 1][0], seen[i + 1][1]); pen.stroke();
    }
    const last = frame.knots.length - 1;
    frame.knots.forEach((i, n) => {
      const end = n === 0 || n === last;
      pen.beginPath();
      pen.arc(seen[i][0], seen[i][1], end ? 6 : 3.2, 0, 7);
      pen.fillStyle = end ? css("--ink") : css("--card");
      pen.fill();
      if (!end) { pen.strokeStyle = css("--ink"); pen.lineWidth = 1; pen.stroke(); }
      if (end) pen.font = "bold 15px system-ui, sans-serif";
      if (end) pen.fillText(n ? "B" : "A", seen[i][0], seen[i][1] - 12);
    });
    title.textContent = frame.title;
    slider.value = current;
  }
  let held = null;
  canvas.addEventListener("pointerdown", (e) => {
    held = [e.clientX, e.clientY];
    canvas.setPointerCapture(e.pointerId);
  });
  canvas.addEventListener("pointermove", (e) => {
    if (!held) return;
    azimuth += (e.clientX - held[0]) * 0.008;
    height = Math.min(1.5, Math.max(-1.5, height + (e.clientY - held[1]) * 0.008));
    held = [e.clientX, e.clientY];
    draw();
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { held = null; });
  canvas.addEventListener("wheel", (e) => {
    e.preventDefault();
    zoom = Math.min(5, Math.max(0.4, zoom * Math.exp(-e.deltaY * 0.001)));
    draw();
  }, { passive: false });
  slider.addEventListener("input", () => { current = Number(slider.value); draw(); });
  play.addEventListener("click", () => {
    if (timer) { clearInterval(timer); timer = null; return; }
    current = 0;
    draw();
    timer = setInterval(() => {
      if (current + 1 < data.frames.length) { current += 1; draw(); } else { clearInterval(timer); timer = null; }
    }, 900);
  });
  turn.addEventListener("click", () => {
    if (turning) { clearInterval(turning); turning = null; return; }
    turning = setInterval(() => { azimuth += 0.012; draw(); }, 33);
  });
  document.getElementById("controls").hidden = data.frames.length < 2;
  document.getElementById("app").hidden = false;
  window.addEventListener("resize", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();
"""


def write_string_page(found: Strings, path: str | Path, title: str = "A string of networks") -> Path:
    """Write one HTML page with all frames: drag to turn, wheel to zoom, a slider through the frames.

    It stands alone (no library, nothing fetched), and has a still picture for readers without scripts. Equal strings
    give equal bytes. Errors: a disk that fails (FileError).
    """
    target = Path(path)
    write_text(target, _page(found, title))
    return target


def _page(found: Strings, title: str) -> str:
    low, high = found.limits
    gradient = ", ".join(COLOURS)
    mark = ""
    if found.threshold is not None:
        from math import log

        place = 100 * (log(found.threshold) - log(low)) / (log(high) - log(low))
        mark = f"<div class='mark' style='left: {min(100, max(0, place)):.2f}%' title='threshold'></div>"
    said = "" if found.threshold is None else f"; the mark on it is the threshold, {found.threshold:.4g}"
    name = escape(title)
    main = (
        f"<h1>{name}</h1>\n<section>\n"
        "<div id='app' hidden><canvas id='view' aria-label='the string in three dimensions'></canvas>\n"
        "<p class='title' id='title'></p>\n<div class='controls' id='controls'>"
        f"<input type='range' id='frame' min='0' max='{len(found.frames) - 1}' value='{len(found.frames) - 1}' "
        "aria-label='frame'><button id='play'>play</button></div>\n"
        f"<div class='scale'><span>{low:.2g}</span><div class='bar' style='background: linear-gradient(to right, "
        f"{gradient})'>{mark}</div><span>{high:.2g}</span><button id='turn'>turn</button></div></div>\n"
        f"<noscript>{svg_text(draw_string(found))}</noscript>\n"
        "<p class='note'>The networks on the string, on the three directions in weight space along which the beads of "
        "the last string spread most; its shadows are drawn on the walls. The colour is the loss, on a logarithmic "
        f"scale{said}. Dots are the beads. Drag to turn, use the wheel to come nearer.</p>\n</section>"
    )
    return html_page(name, _CSS, main, data_and_script(_data(found), _SCRIPT))


def _data(found: Strings) -> dict[str, Any]:
    """What the script draws: all frames in a box whose longest half side is 1."""
    middle, sides = (v.tolist() for v in found.box)
    half = max(sides)

    def rounded(value: float) -> float | None:
        return float(f"{value:.5g}") if isfinite(value) else None

    frames = [
        {
            "points": [[round((v - m) / half, 5) for v, m in zip(p, middle, strict=True)] for p in f.points.tolist()],
            "loss": [rounded(v) for v in f.loss.tolist()],
            "knots": f.knots.nonzero()[0].tolist(),
            "title": f.title,
        }
        for f in found.frames
    ]
    shares = [f"{100 * v:.2g}" for v in found.variance]
    box = [round(side / half, 5) for side in sides]
    return {"frames": frames, "box": box, "variance": shares, "limits": list(found.limits), "colours": list(COLOURS)}
