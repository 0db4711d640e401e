"use strict";
// Draws the panels from the JSON beside this script, in the page's own colours, and keeps both sections' choices the same.
(() => {
  const specifications = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const chosen = { x: "layer", kl: "log" };
  // A third of the narrower of A4 and Letter within the style sheet's margins: print layout cannot be measured beforehand.
  const paper = { width: 220, height: 200 };
  let printing = false;
  // No logo, no cloud button, no place to send anything to: only saving a panel as a picture.
  const config = {
    responsive: true, displaylogo: false, plotlyServerURL: "", topojsonURL: "about:blank", showTips: false,
    modeBarButtons: [["toImage"]], scrollZoom: false, doubleClick: false,
  };

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const translucent = (hex) => `rgba(${[1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)).join(", ")}, 0.4)`;

  function coloured(trace) {
    const own = colour(trace.meta);
    return {
      ...trace,
      x: trace.customdata.map(([layer, relative]) => (chosen.x === "layer" ? layer : relative)),
      line: { ...trace.line, color: own },
      marker: { ...trace.marker, color: own },
      error_y: { ...trace.error_y, color: translucent(own) },
    };
  }

  function axes(layout, metric) {
    const lines = { gridcolor: colour("grid"), zerolinecolor: colour("soft"), tickcolor: colour("rule"), spikecolor: colour("soft"), fixedrange: true };
    const xaxis = { ...layout.xaxis, ...lines };
    if (chosen.x !== "layer") {
      const [low, high] = layout.xaxis.range;
      const last = Math.max(high - 0.5, 1);
      Object.assign(xaxis, {
        range: [low / last, 1 - low / last], dtick: 0.25, title: { ...layout.xaxis.title, text: chosen.x },
        unifiedhovertitle: { text: "relative depth %{x:.2f}, mean (95% interval)" },
      });
    }
    const yaxis = { ...layout.yaxis, ...lines, showspikes: false };
    if (metric === "kl" && chosen.kl === "linear") Object.assign(yaxis, { type: "linear", rangemode: "tozero" });
    return { xaxis, yaxis };
  }

  function draw(plot) {
    const { data, layout } = specifications[plot.dataset.panel];
    const ink = colour("ink");
    return Plotly.react(plot, data.map(coloured), {
      ...layout,
      ...axes(layout, plot.dataset.metric),
      font: { ...layout.font, color: ink, size: printing ? 9 : layout.font.size },
      margin: printing ? { l: 34, r: 4, t: 4, b: 32 } : layout.margin,
      ...(printing ? { ...paper, autosize: false } : { autosize: true, width: undefined, height: undefined }),
      paper_bgcolor: colour("paper"),
      plot_bgcolor: colour("paper"),
      hoverlabel: { bgcolor: colour("paper"), bordercolor: colour("rule"), font: { color: ink, size: 11 } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("soft"), activecolor: ink },
    }, { ...config, toImageButtonOptions: { format: "svg", filename: plot.dataset.panel } });
  }

  function drawAll() {
    plots.forEach(draw);
    document.querySelectorAll("[data-only]").forEach((note) => { note.hidden = note.dataset.only !== chosen.kl; });
  }

  document.addEventListener("change", ({ target }) => {
    if (!target.dataset.choice) return;
    chosen[target.dataset.choice] = target.value;
    document.querySelectorAll(`[data-choice="${target.dataset.choice}"]`).forEach((input) => {
      input.checked = input.value === target.value;
    });
    drawAll();
  });

  function drawForPaper(now) {
    printing = now;
    document.documentElement.classList.toggle("paper", now);
    drawAll();
  }
  addEventListener("beforeprint", () => drawForPaper(true));
  addEventListener("afterprint", () => drawForPaper(false));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  drawAll();
})();
