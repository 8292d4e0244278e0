"""The style sheet and the script of the page."""

CSS = """
:root { color-scheme: light dark; --ground: #f6f7f8; --card: #ffffff; --ink: #1d2329; --soft: #59636e;
  --line: #dde1e6; --accent: #0b6bb0; --good: #11734f; --good-ground: #ddf3e8; --bad: #a32a17; --bad-ground: #fde9e4;
  --open: #7a5200; --open-ground: #fdf0d2; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181c; --card: #1c2127; --ink: #e4e8ec; --soft: #a1abb6;
  --line: #343b44; --accent: #6cb8f0; --good: #6fd6a8; --good-ground: #163a2c; --bad: #ff9a86; --bad-ground: #43201a;
  --open: #f0c060; --open-ground: #3d3015; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Liberation Sans", sans-serif; overflow-wrap: break-word; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .8rem; }
h2 { font-size: 1.25rem; margin: 0 0 .8rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
section, .alert { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.3rem 1.4rem;
  margin: 1.2rem 0; }
.alert { border-color: var(--bad); background: var(--bad-ground); }
.alert ul, .summary ul { margin: .2rem 0; padding-left: 1.2rem; }
.summary li { margin: .35rem 0; }
code, pre { font-family: ui-monospace, "Liberation Mono", Menlo, Consolas, monospace; font-size: .88em; }
pre { background: var(--ground); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem;
  overflow-x: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
thead th { color: var(--soft); font-size: .82rem; font-weight: 600; vertical-align: bottom; }
th:first-child, .segments th, .segments td, .plain th, .plain td { text-align: left; }
tbody th { font-weight: 600; min-width: 11rem; }
small { display: block; color: var(--soft); font-weight: 400; }
td.best { background: var(--good-ground); color: var(--good); font-weight: 700; }
.tag { display: inline-block; border-radius: 5px; padding: 0 .45em; font-size: .82rem; font-weight: 600; }
.tag.good { background: var(--good-ground); color: var(--good); }
.tag.bad { background: var(--bad-ground); color: var(--bad); }
.tag.open { background: var(--open-ground); color: var(--open); }
.note, .columns { color: var(--soft); font-size: .88rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .6rem 1.5rem;
  margin: 1rem 0 0; }
.columns dt { font-weight: 600; color: var(--ink); } .columns dd { margin: 0; }
.claim { margin: .3rem 0 .3rem 1rem; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--accent); }
.segments { font-size: .88rem; margin-top: .5rem; }
.controls { display: none; flex-wrap: wrap; gap: .5rem 1.5rem; margin-bottom: .6rem; }
.controls.on { display: flex; }
.controls fieldset { border: 0; margin: 0; padding: 0; } .controls legend { display: none; }
.controls label { margin-right: .8rem; cursor: pointer; }
.figure { width: 100%; } .surface { height: 560px; } #curves { height: 460px; } #plane { height: 520px; }
noscript svg { width: 100%; height: auto; background: #ffffff; border-radius: 8px; }
@media (max-width: 640px) { #curves, #plane { height: 640px; } section, .alert { padding: 1rem .8rem; }
  th, td { padding: .4rem .45rem; } }
@media print { body { background: #ffffff; } section { break-inside: avoid; } }
"""

SCRIPT = """
"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 640px)");
  // the buttons are named one by one: plotly's own choice has one that sends the figure to a server
  const config = { responsive: true, displaylogo: false, plotlyServerURL: "",
    modeBarButtons: [["toImage"], ["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]] };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const layout = (more) => {
    const line = css("--line");
    const axis = { gridcolor: line, zeroline: false, linecolor: css("--soft"), automargin: true };
    const below = { orientation: "h", x: 0, xref: "container", y: 0, yref: "container", yanchor: "bottom" };
    return Object.assign({}, more, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
      font: { color: css("--ink"), family: "system-ui, sans-serif", size: 13 },
      hoverlabel: { bgcolor: css("--card"), font: { color: css("--ink") } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent") },
      margin: { l: 60, r: 15, t: 36, b: 50 }, legend: narrow.matches ? below : { x: 1.02, y: 1 },
      xaxis: Object.assign({}, axis, more.xaxis), yaxis: Object.assign({}, axis, more.yaxis) });
  };
  const ring = (color) => ({ size: 10, color: css("--card"), line: { color: color, width: 2.5 } });

  function drawCurves() {
    const d = data.curves, box = document.getElementById("curves");
    const set = (name) => document.querySelector("input[name=" + name + "]:checked").value;
    const q = set("quantity"), log = set("scale") === "log";
    const shown = { train: document.getElementById("train").checked, test: document.getElementById("test").checked };
    const lift = (v) => (v === null ? null : log ? Math.max(v, d.floor) : v);
    const traces = [];
    for (const run of d.runs) {
      let first = true;
      for (const part of ["train", "test"]) {
        if (!shown[part] || !run[part]) continue;
        const dash = run.baseline ? (part === "train" ? "dash" : "dot") : part === "train" ? "solid" : "5px,3px";
        traces.push({ x: run.t, y: run[part][q].map(lift), customdata: run[part][q], text: run.text, mode: "lines",
          name: run.name, legendgroup: run.name, showlegend: first, type: "scatter",
          line: { color: run.color, width: part === "train" ? 2.4 : 1.6, dash: dash },
          hovertemplate: "t %{x:.4f}, " + part + " " + q + " %{customdata:.4~g}<br>%{text}" });
        first = false;
      }
      if (shown.train && run.max[q][1] !== null) traces.push({ x: [run.max[q][0]], y: [lift(run.max[q][1])],
        customdata: [run.max[q][1]], mode: "markers", name: run.name, legendgroup: run.name, showlegend: false,
        marker: ring(run.color), hovertemplate: "largest training " + q + " %{customdata:.4~g}" });
    }
    Plotly.react(box, traces, layout({
      xaxis: { range: [-0.01, 1.01], tickvals: [0, 0.25, 0.5, 0.75, 1], ticktext: ["A", "0.25", "0.5", "0.75", "B"],
        title: { text: "t, from network A to network B" } },
      yaxis: { type: log ? "log" : "linear", rangemode: log ? "normal" : "tozero", exponentformat: "e",
        dtick: log ? 1 : undefined, title: { text: q === "loss" ? "loss" : "error rate" } } }), config);
  }

  function drawPlane() {
    const d = data.plane, box = document.getElementById("plane");
    const traces = d.runs.map((run) => ({ x: run.x, y: run.y, name: run.name, mode: "lines+markers", type: "scatter",
      line: { color: run.color, width: 2, dash: run.baseline ? "dash" : "solid" },
      marker: { color: run.color, size: run.baseline ? 0 : run.size, opacity: 1, line: { width: 0 } },
      hovertemplate: "(%{x:.4~g}, %{y:.4~g})" }));
    traces.push({ x: d.ends.map((e) => e[1]), y: d.ends.map((e) => e[2]),
      text: d.ends.map((e) => "<b>" + e[0] + "</b>"), mode: "markers+text", textposition: "top center",
      textfont: { size: 15, color: css("--ink") }, showlegend: false,
      marker: { size: 12, color: css("--ink") }, hoverinfo: "text", cliponaxis: false });
    Plotly.react(box, traces, layout({ showlegend: true,
      xaxis: { title: { text: "direction 1 (" + d.variance[0] + " of the variance)" } },
      yaxis: { title: { text: "direction 2 (" + d.variance[1] + " of the variance)" } } }), config);
  }

  function drawSurface(d, k) {
    const box = document.getElementById("surface" + k);
    const name = document.querySelector("input[name=quantity" + k + "]:checked").value;
    const s = d.values[name], z = s.grid.map((row) => row.map((v) => (s.log ? Math.log10(v) : v)));
    const [low, high] = s.range.map((v) => (s.log ? Math.log10(v) : v));
    const ticks = [0, 1, 2, 3, 4].map((i) => low + (i / 4) * (high - low));
    const traces = [{ type: "contour", x: d.x, y: d.y, z: z, customdata: s.told, colorscale: "Viridis", zmin: low,
      zmax: high, autocontour: false, contours: { start: low, end: high, size: (high - low) / 14 || 1 },
      line: { width: 0.4, color: "#ffffff" },
      hovertemplate: "(%{x:.4~g}, %{y:.4~g})<br>" + name + " %{customdata}<extra></extra>",
      colorbar: { tickvals: ticks, ticktext: ticks.map((v) => (s.log ? Math.pow(10, v) : v).toPrecision(2)) } }];
    if (d.exact) traces.push({ type: "contour", x: d.x, y: d.y, z: d.exact, showscale: false, hoverinfo: "skip",
      contours: { type: "constraint", operation: "=", value: 0.5 },
      line: { color: "#1f2328", width: 1, dash: "dot" } });
    const [a, b] = d.corners;
    traces.push({ x: [a[1], b[1]], y: [a[2], b[2]], mode: "lines", showlegend: false, hoverinfo: "skip",
      line: { color: "#ffffff", width: 1.5, dash: "dash" } });
    if (d.path.length) traces.push({ x: d.path.map((p) => p[0]), y: d.path.map((p) => p[1]), mode: "lines",
      customdata: d.path.map((p) => p[2]), line: { color: "#d9541e", width: 3 }, showlegend: false,
      hovertemplate: "the path, %{customdata:.3~g} off the plane<extra></extra>" });
    traces.push({ x: d.corners.map((c) => c[1]), y: d.corners.map((c) => c[2]), showlegend: false, cliponaxis: false,
      customdata: s.corners, text: d.corners.map((c) => "<b>" + c[0] + "</b>"), mode: "markers+text",
      textposition: "top center", textfont: { size: 15, color: "#ffffff" },
      marker: { size: 11, color: "#1f2328", line: { color: "#ffffff", width: 1.5 } },
      hovertemplate: "%{text}: " + name + " %{customdata}<extra></extra>" });
    const across = { title: { text: "towards b, in distances of weight space" }, constrain: "domain" };
    Plotly.react(box, traces, layout({ xaxis: across,
      yaxis: { title: { text: "towards c" }, scaleanchor: "x", constrain: "domain" } }), config);
  }

  function draw() {
    if (data.curves) drawCurves();
    if (data.plane) drawPlane();
    (data.surfaces || []).forEach(drawSurface);
  }
  for (const controls of document.querySelectorAll(".controls")) {
    controls.classList.add("on");
    controls.addEventListener("change", draw);
  }
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);
  draw();
})();
"""
