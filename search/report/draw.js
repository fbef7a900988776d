// Draws the figures of the report: plotly.js is unpacked once, each figure takes its colours from the page's theme.
"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const places = [...document.querySelectorAll("[data-figure]")];
  const printed = 680; // pixels that fit between A4's margins
  const page = document.documentElement;

  const colour = (name) => getComputedStyle(page).getPropertyValue(name).trim();

  function theme(layout) {
    const axis = { gridcolor: colour("--grid"), linecolor: colour("--line"), zerolinecolor: colour("--grid") };
    const themed = {
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--ink"), family: getComputedStyle(document.body).fontFamily, size: 12 },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
    };
    const axes = Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));
    for (const name of new Set(["xaxis", "yaxis", ...axes])) themed[name] = { ...layout[name], ...axis };
    return themed;
  }

  const options = {
    displaylogo: false,
    displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
    responsive: true,
    modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
  };

  async function draw(width) {
    for (const place of places) {
      const { data, layout } = figures[place.dataset.figure];
      const sized = width ? { ...layout, width: Math.min(width, place.dataset.half ? width / 2 - 8 : width) } : layout;
      await Plotly.react(place, data, theme(sized), options);
    }
    page.dataset.drawn = places.length;
  }

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  function fail(reason) {
    for (const place of places) place.textContent = "This chart could not be drawn: " + reason;
    page.dataset.failed = reason;
  }

  async function start() {
    if (typeof DecompressionStream === "undefined") {
      fail("the browser is older than 2023.");
      return;
    }
    const packed = document.getElementById("plotly");
    const script = document.createElement("script");
    script.textContent = await unpack(packed.textContent);
    packed.remove();
    document.head.append(script);
    await draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
    addEventListener("beforeprint", () => {
      for (const folded of document.querySelectorAll("details")) folded.open = true;
      page.classList.add("printing"); // paper is white, whatever the screen is
      draw(printed);
    });
    addEventListener("afterprint", () => {
      page.classList.remove("printing");
      draw();
    });
  }

  start().catch((error) => fail(String(error)));
})();
