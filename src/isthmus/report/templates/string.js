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
  document.documentElement.classList.add("scripted");
  window.addEventListener("resize", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();
