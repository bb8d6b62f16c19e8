"use strict";
(async () => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const views = {};
  const save = (name, type, text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  // The panels of a figure as one SVG, side by side in as many columns as the page shows.
  const together = async (name) => {
    const panels = document.querySelectorAll(`#${name} .panel`);
    const left = new Set([...panels].map((panel) => Math.round(panel.getBoundingClientRect().left)));
    const columns = Math.max(1, left.size), gap = 24, head = 26;
    const parts = await Promise.all(views[name].map((view) => view.toSVG()));
    let x = 0, y = 0, row = 0, width = 0, body = "";
    parts.forEach((svg, i) => {
      const w = parseFloat(svg.match(/width="([\d.]+)"/)[1]), h = parseFloat(svg.match(/height="([\d.]+)"/)[1]);
      if (i && i % columns === 0) { x = 0; y += row + gap + head; row = 0; }
      const title = (panels[i].querySelector("h4") || {}).textContent || "";
      const safe = title.replace(/&/g, "&amp;").replace(/</g, "&lt;");
      body += `<text x="${x + 8}" y="${y + 16}" font-family="sans-serif" font-size="13" font-weight="600">${safe}</text>`;
      body += svg.replace("<svg", `<svg x="${x}" y="${y + head}"`);
      x += w + gap; row = Math.max(row, h); width = Math.max(width, x - gap);
    });
    let at = 8, line = y + row + head + 20;
    document.querySelectorAll(`#${name} .keys li`).forEach((key) => {
      const wide = 30 + 7.5 * key.textContent.length;
      if (at + wide > width && at > 8) { at = 8; line += 20; }
      const path = key.querySelector("path").outerHTML, label = key.textContent.replace(/&/g, "&amp;").replace(/</g, "&lt;");
      body += `<g transform="translate(${at + 6},${line - 4})">${path}</g>`;
      body += `<text x="${at + 18}" y="${line}" font-family="sans-serif" font-size="12">${label}</text>`;
      at += wide;
    });
    return `<svg xmlns="http://www.w3.org/2000/svg" width="${Math.max(width, at)}" height="${line + 12}">${body}</svg>`;
  };
  for (const [name, figure] of Object.entries(figures)) {
    const node = document.getElementById(name);
    if (!node) continue;
    const places = [...node.querySelectorAll(".vega")];
    const made = await Promise.all(figure.specs.map((spec, i) =>
      window.vegaEmbed(places[i], spec, { actions: false, renderer: "svg", logLevel: 1, tooltip: { theme: "light" } })));
    views[name] = made.map((result) => result.view);
    for (const select of node.querySelectorAll("select")) {
      select.addEventListener("change", () =>
        views[name].forEach((view) => view.signal(select.name, select.value).runAsync()));
    }
    node.querySelector("[data-save=svg]").addEventListener("click", async () =>
      save(`${name}.svg`, "image/svg+xml", await together(name)));
    node.querySelector("[data-save=csv]").addEventListener("click", () =>
      save(`${name}.csv`, "text/csv", figure.csv));
  }
  // Charts take the width of paper when printed, and open what is folded.
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((node) => { node.open = true; });
    Object.values(views).flat().forEach((view) => view.resize().run());
  });
  document.body.dataset.ready = "yes";
})();
