"use strict";
// Draws the panels from the JSON in the page, in the page's colours, as they come near the viewport; keeps the choices of all
// sections in sync; saves tables and figures as files.
(() => {
  const specifications = JSON.parse(document.querySelector("script#figures").textContent);
  const tables = JSON.parse(document.querySelector("script#tables").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const chosen = { x: "layer", y: "log" };
  const near = new Set();
  // Pixels within the style sheet's margins on the narrower of A4 and Letter, by panels per row: print layout cannot be measured.
  const paper = { 1: 690, 2: 338, 3: 220 };
  let printing = false;
  // No logo, no mode bar, no server to send data to.
  const config = {
    responsive: true, displaylogo: false, displayModeBar: false, plotlyServerURL: "", topojsonURL: "about:blank",
    showTips: false, scrollZoom: false, doubleClick: false,
  };

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const parts = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const full = (hex) => (hex.length === 4 ? `#${[...hex.slice(1)].map((digit) => digit + digit).join("")}` : hex);
  const translucent = (hex) => `rgba(${parts(hex).join(", ")}, 0.4)`;
  const mixed = (from, to, share) =>
    `rgb(${parts(full(from)).map((part, i) => Math.round(part + share * (parts(to)[i] - part))).join(", ")})`;

  function coloured(trace, relative) {
    const own = colour(trace.meta);
    // The lowest value is slightly darker than an empty cell.
    if (trace.type === "heatmap") {
      const low = mixed(colour("paper"), own, 0.05);
      const signed = trace.zmid === 0 || trace.zmin < 0;
      const scale = signed ? [[0, colour("soft")], [0.5, low], [1, own]] : [[0, low], [1, own]];
      return { ...trace, colorscale: scale };
    }
    const seen = { ...trace, marker: { ...trace.marker, color: own } };
    if (trace.type === "bar") return { ...seen, textfont: { color: colour("ink") } };
    ["error_x", "error_y"].filter((bars) => trace[bars]).forEach((bars) => {
      seen[bars] = { ...trace[bars], color: translucent(own) };
    });
    if (trace.line) seen.line = { ...trace.line, color: own };
    if (relative) seen.x = trace.customdata.map(([layer, share]) => (chosen.x === "layer" ? layer : share));
    return seen;
  }

  function axes({ layout, relative, log }) {
    const lines = { gridcolor: colour("grid"), zerolinecolor: colour("soft"), tickcolor: colour("rule"), spikecolor: colour("soft"), fixedrange: true };
    const drawn = {};
    Object.keys(layout).filter((key) => /^[xy]axis/.test(key)).forEach((key) => {
      drawn[key] = { ...layout[key], ...lines, ...(key[0] === "y" ? { showspikes: false } : {}) };
    });
    if (relative && chosen.x !== "layer") drawn.xaxis = { ...relative, ...lines };
    if (log && chosen.y === "linear") Object.assign(drawn.yaxis, { type: "linear", rangemode: "tozero", range: undefined, autorange: true });
    return drawn;
  }

  // Drops points below a logarithmic axis: a line to them would leave the panel as a stub (Panel.drawn_y in Python).
  function onAxis(trace, drawn) {
    const axis = drawn[`yaxis${(trace.yaxis || "y").slice(1)}`];
    if (trace.type !== "scatter" || axis.type !== "log") return trace;
    const low = axis.range ? 10 ** axis.range[0] : 0;
    return { ...trace, y: trace.y.map((y) => (y > low ? y : null)) };
  }

  // The panel as plotly data and layout, in the page's current colours.
  function drawing(panel) {
    const specification = specifications[panel];
    const { data, layout, relative } = specification;
    const ink = colour("ink");
    const drawn = axes(specification);
    return {
      data: data.map((trace) => onAxis(coloured(trace, relative), drawn)),
      layout: {
        ...layout,
        ...drawn,
        shapes: (layout.shapes || []).map((shape) => ({ ...shape, line: { ...shape.line, color: colour("soft") } })),
        font: { ...layout.font, color: ink, size: printing ? 9 : layout.font.size },
        margin: printing ? { ...layout.margin, t: 4, b: 32, l: Math.max(layout.margin.l - 12, 4) } : layout.margin,
        paper_bgcolor: colour("paper"),
        plot_bgcolor: colour("paper"),
        hoverlabel: { bgcolor: colour("paper"), bordercolor: colour("rule"), font: { color: ink, size: 11 } },
      },
    };
  }

  function draw(plot) {
    const { data, layout } = drawing(plot.dataset.panel);
    const size = { width: paper[plot.dataset.across], height: layout.height > 330 ? layout.height : 200, autosize: false };
    const room = printing ? size : { autosize: true, width: undefined, height: undefined };
    return Plotly.react(plot, data, { ...layout, ...room }, config);
  }

  // A saved image is standalone: white background, with title and legend.
  function picture(panel, format) {
    const { called } = specifications[panel];
    const root = document.documentElement;
    root.classList.add("paper");
    const { data, layout } = drawing(panel);
    root.classList.remove("paper");
    const wide = document.getElementById(`plot-${panel}`).dataset.across === "1";
    const size = { width: wide ? 900 : 640, height: layout.height + 100 };
    const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("$", "&#36;");
    const standing = {
      ...layout, ...size,
      title: { text: `${plain(document.body.dataset.title)}<br>${plain(called)}`, x: 0, xanchor: "left", y: 1, yref: "container", yanchor: "top", pad: { t: 20, l: 12 }, font: { size: 14 } },
      margin: { ...layout.margin, l: layout.margin.l + 8, r: 16, t: 86 },
      showlegend: data.length > 1 && data.every((trace) => trace.type === "scatter"),
      legend: { orientation: "h", x: 1, xanchor: "right", y: 1, yanchor: "bottom", font: { size: 11 } },
    };
    return Plotly.downloadImage({ data, layout: standing, config }, { format, ...size, scale: format === "png" ? 2 : 1, filename: panel });
  }

  // Tables are packed in the page; they are unpacked and saved locally.
  async function saveTable(name) {
    const bytes = Uint8Array.from(atob(tables[name]), (character) => character.charCodeAt(0));
    const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([await new Response(unpacked).arrayBuffer()], { type: "text/csv" }));
    link.download = `${name}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  document.addEventListener("click", ({ target }) => {
    if (target.dataset.csv) saveTable(target.dataset.csv);
    if (target.dataset.picture) picture(target.dataset.of, target.dataset.picture);
  });

  function drawNear() {
    near.forEach(draw);
    document.querySelectorAll("[data-only]").forEach((note) => { note.hidden = note.dataset.only !== chosen.y; });
  }

  document.addEventListener("change", ({ target }) => {
    if (!target.dataset.choice) return;
    chosen[target.dataset.choice] = target.value;
    document.querySelectorAll(`[data-choice="${target.dataset.choice}"]`).forEach((input) => {
      input.checked = input.value === target.value;
    });
    drawNear();
  });

  function drawForPaper(now) {
    printing = now;
    document.documentElement.classList.toggle("paper", now);
    document.querySelectorAll("details").forEach((element) => { element.open = now; });
    plots.forEach((plot) => near.add(plot));
    drawNear();
  }
  addEventListener("beforeprint", () => drawForPaper(true));
  addEventListener("afterprint", () => drawForPaper(false));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawNear);

  const watch = new IntersectionObserver((entries) => {
    entries.filter((entry) => entry.isIntersecting && !near.has(entry.target)).forEach(({ target }) => {
      near.add(target);
      watch.unobserve(target);
      draw(target);
    });
  }, { rootMargin: "800px" });
  plots.forEach((plot) => watch.observe(plot));
  drawNear();
})();
