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

  document.documentElement.classList.add("scripted");
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
