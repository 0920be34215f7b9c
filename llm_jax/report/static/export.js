// Buttons that save what is seen: charts as SVG, PNG and CSV, tables as CSV. Nothing is fetched.
(() => {
  "use strict";
  const { charts, picture } = globalThis.report;
  const prefix = document.body.dataset.name;

  function save(name, blob) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${prefix}-${name}`;
    link.click();
    // The browser reads the blob after the click has returned.
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  async function png(name, text) {
    const image = new Image();
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = image.width * 2; // Sharp in print and on dense screens.
    canvas.height = image.height * 2;
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => save(`${name}.png`, blob), "image/png");
  }

  // A spreadsheet would run a text that begins like a formula.
  function cell(value) {
    let text = String(value ?? "");
    if (/^[=+\-@\t\r]/.test(text) && !Number.isFinite(Number(text))) text = `'${text}`;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  const csv = (rows) => rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("");

  // The number that a cell was written from where it has one, else its text.
  function valueOf(td) {
    const numbers = td.querySelectorAll("[data-value]");
    if (td.dataset.value !== undefined) return td.dataset.value;
    if (numbers.length === 1) return numbers[0].dataset.value;
    const copy = td.cloneNode(true);
    for (const small of copy.querySelectorAll("small")) small.prepend(" · ");
    const text = copy.textContent.replace(/\s+/g, " ").trim();
    return text === "–" ? "" : text.replaceAll("−", "-");
  }

  // A column whose cells have standard errors is followed by one with these.
  function tableOf(table) {
    const rows = [...table.rows].map((row) => [...row.cells]);
    const errors = (cell) => cell?.querySelector("[data-error]")?.dataset.error;
    const twice = rows[0].map((_, i) => rows.some((row) => errors(row[i]) !== undefined));
    return rows.map((row, r) =>
      row.flatMap((cell, i) => {
        if (!twice[i]) return [valueOf(cell)];
        return [valueOf(cell), r === 0 ? `${valueOf(cell)} standard error` : errors(cell)];
      }),
    );
  }

  function chartOf(figure) {
    const { model } = charts.get(figure);
    const lines = model.layers.map((line, i) => ({ ...line, column: model.data[i + 1] }));
    const logged = lines.filter((line) => line.raw);
    const head = [model.axis.label, ...logged.map((line) => model.panel.series[line.owner].label)];
    const rows = model.data[0].map((x, i) => [x, ...logged.map((line) => line.column[i])]);
    return [head, ...rows];
  }

  function buttons(what, actions) {
    const box = document.createElement("span");
    box.className = "export";
    for (const [format, act] of Object.entries(actions)) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = format;
      button.title = `Save as ${format}`;
      button.setAttribute("aria-label", `Save ${what} as ${format}`);
      button.addEventListener("click", act);
      box.append(button);
    }
    return box;
  }

  const text = (name, type, content) => save(name, new Blob([content], { type }));

  for (const figure of document.querySelectorAll("figure.panel, figure.still")) {
    const { name } = figure.dataset;
    const actions = {
      SVG: () => text(`${name}.svg`, "image/svg+xml", picture(figure)),
      PNG: () => png(name, picture(figure)),
    };
    if (figure.classList.contains("panel")) {
      actions.CSV = () => text(`${name}.csv`, "text/csv", csv(chartOf(figure)));
    }
    figure.append(buttons(figure.querySelector("figcaption b").textContent, actions));
  }
  for (const table of document.querySelectorAll("table[data-name]")) {
    const { name } = table.dataset;
    const act = () => text(`${name}.csv`, "text/csv", csv(tableOf(table)));
    const box = document.createElement("div");
    box.className = "exported";
    const place = table.closest(".scroll") ?? table;
    place.replaceWith(box);
    box.append(buttons(`the table ${name.replaceAll("-", " ")}`, { CSV: act }), place);
  }
})();
