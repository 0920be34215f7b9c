// Draws the training curves with uPlot from the JSON that the page carries.
(() => {
  "use strict";
  const payload = JSON.parse(document.getElementById("payload").textContent);
  const state = { smooth: 0.6, axis: "x" };
  const charts = new Map(); // figure -> uPlot
  const HEIGHT = 168;
  const FEW = 30; // Fewer points than that are shown as they are: an average would only lag.

  const probe = document.createElement("i");
  probe.hidden = true;
  document.body.append(probe);

  // The resolved colour of a CSS variable: a canvas knows no variables.
  function color(name, alpha = 1) {
    probe.style.color = `var(--${name})`;
    const found = getComputedStyle(probe).color;
    const parts = found.match(/[\d.]+/g);
    return `rgba(${parts[0]}, ${parts[1]}, ${parts[2]}, ${alpha})`;
  }

  function compact(value) {
    if (value === null || value === undefined) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    let text;
    if (size >= 1e6) text = `${+(value / 1e6).toPrecision(3)}M`;
    else if (size >= 1e4) text = `${+(value / 1e3).toPrecision(3)}k`;
    else if (size < 1e-4) text = value.toExponential(1);
    else text = `${+value.toPrecision(size >= 1000 ? 4 : 3)}`;
    return text.replace(/-/g, "−");
  }

  function percent(value) {
    return value === null || value === undefined ? "–" : `${+(100 * value).toPrecision(3)} %`;
  }

  function clock(value) {
    if (value < 120) return `${+value.toPrecision(3)} s`;
    if (value < 7200) return `${+(value / 60).toPrecision(3)} min`;
    return `${+(value / 3600).toPrecision(3)} h`;
  }

  // Exponential average without the pull towards the first value; gaps stay gaps.
  function smoothed(values, weight) {
    let total = 0;
    let mass = 0;
    return values.map((value) => {
      if (value === null) return null;
      total = weight * total + value;
      mass = weight * mass + 1;
      return total / mass;
    });
  }

  function lastOf(values) {
    for (let i = values.length - 1; i >= 0; i--) if (values[i] !== null) return i;
    return null;
  }

  function nearest(values, index) {
    for (let d = 0; d < values.length; d++) {
      if (values[index - d] !== null && values[index - d] !== undefined) return index - d;
      if (values[index + d] !== null && values[index + d] !== undefined) return index + d;
    }
    return null;
  }

  function legend(box, panel, stage) {
    const show = panel.unit === "percent" ? percent : compact;
    const cells = panel.series.map((series) => {
      const item = document.createElement("span");
      const swatch = document.createElement("i");
      swatch.style.background = `var(--${series.color})`;
      swatch.className = series.dots ? "dot" : "dash";
      const value = document.createElement("b");
      item.append(swatch, document.createTextNode(series.label), value);
      box.append(item);
      return value;
    });
    const where = document.createElement("span");
    where.className = "where";
    box.append(where);
    return (index) => {
      panel.series.forEach((series, i) => {
        const values = stage.y[series.key];
        const at = index === null ? lastOf(values) : nearest(values, index);
        cells[i].textContent = at === null ? "–" : show(values[at]);
      });
      const at = index === null ? stage.x.length - 1 : index;
      where.textContent = state.axis === "x" ? `step ${stage.x[at]}` : clock(stage.t[at]);
    };
  }

  function lines(panel) {
    return (u) => {
      const { ctx, bbox } = u;
      const ratio = devicePixelRatio || 1;
      ctx.save();
      ctx.font = `${10.5 * ratio}px system-ui, sans-serif`;
      for (const line of panel.lines) {
        const y = Math.round(u.valToPos(line.value, "y", true)) + 0.5;
        if (y < bbox.top || y > bbox.top + bbox.height) continue;
        ctx.strokeStyle = color("soft");
        ctx.lineWidth = ratio;
        ctx.setLineDash([4 * ratio, 3 * ratio]);
        ctx.beginPath();
        ctx.moveTo(bbox.left, y);
        ctx.lineTo(bbox.left + bbox.width, y);
        ctx.stroke();
        ctx.fillStyle = color("soft");
        ctx.textAlign = "right";
        const above = y - bbox.top > 14 * ratio;
        ctx.textBaseline = above ? "bottom" : "top";
        ctx.fillText(line.label, bbox.left + bbox.width - 2 * ratio, y + (above ? -2 : 2) * ratio);
      }
      ctx.restore();
    };
  }

  function range(panel) {
    return (u, low, high) => {
      if (low === null || high === null) return [0, 1];
      for (const line of panel.lines) {
        low = Math.min(low, line.value);
        high = Math.max(high, line.value);
      }
      if (panel.zero) low = Math.min(low, 0);
      const size = Math.max(Math.abs(low), Math.abs(high));
      // A constant is a flat line in the middle, not its rounding errors.
      const flat = high - low < 1e-6 * size;
      const pad = flat ? size * 0.5 || 1 : (high - low) * 0.06;
      // A quantity that is never negative keeps its natural floor.
      const floor = low >= 0 && low - pad < 0 ? 0 : low - pad;
      const ceiling = panel.unit === "percent" && high <= 1 ? Math.min(high + pad, 1.02) : high + pad;
      return [floor, ceiling];
    };
  }

  function columns(panel, stage) {
    const data = [stage[state.axis]];
    const series = [{}];
    for (const one of panel.series) {
      const values = stage.y[one.key];
      const present = values.filter((value) => value !== null).length;
      if (one.dots) {
        data.push(values);
        series.push({
          stroke: color(one.color),
          width: 1.4,
          spanGaps: true,
          points: { show: present < 60, size: 5, fill: color(one.color), width: 0 },
        });
        continue;
      }
      const alone = { show: present < 3, size: 5, fill: color(one.color), width: 0 };
      const faint = state.smooth > 0 && !panel.exact && present >= FEW;
      data.push(values);
      const stroke = color(one.color, faint ? 0.28 : 1);
      series.push({ stroke, width: faint ? 1 : 1.6, spanGaps: true, points: alone });
      if (faint) {
        data.push(smoothed(values, state.smooth));
        series.push({
          stroke: color(one.color),
          width: 2,
          spanGaps: true,
          points: { show: false },
        });
      }
    }
    return { data, series };
  }

  function axes(panel) {
    const grid = { stroke: color("line"), width: 1 };
    const common = {
      stroke: color("soft"),
      font: "11px system-ui, sans-serif",
      grid,
      ticks: { show: false },
    };
    const show = panel.unit === "percent" ? percent : compact;
    const across = state.axis === "x" ? compact : clock;
    return [
      { ...common, size: 24, gap: 4, space: 64, values: (u, at) => at.map(across) },
      { ...common, size: 50, gap: 4, space: 24, values: (u, at) => at.map(show) },
    ];
  }

  function draw(figure) {
    const panel = payload.panels[+figure.dataset.panel];
    const stage = payload.stages[panel.stage];
    const plot = figure.querySelector(".plot");
    const box = figure.querySelector(".legend");
    const width = plot.clientWidth;
    if (!width) return; // Inside a closed block; drawn when it opens.
    charts.get(figure)?.destroy();
    box.replaceChildren();
    const update = legend(box, panel, stage);
    const { data, series } = columns(panel, stage);
    const options = {
      width,
      height: HEIGHT,
      series,
      axes: axes(panel),
      scales: { x: { time: false }, y: { range: range(panel) } },
      legend: { show: false },
      padding: [6, 14, 0, 0],
      cursor: {
        y: false,
        points: { size: 6, width: 0 },
        sync: { key: `${panel.stage}` },
      },
      hooks: { draw: [lines(panel)], setCursor: [(u) => update(u.cursor.idx ?? null)] },
    };
    charts.set(figure, new uPlot(options, data, plot));
    update(null);
  }

  const figures = [...document.querySelectorAll("figure.panel")];
  const drawAll = () => figures.forEach(draw);

  const slider = document.getElementById("smooth");
  slider?.addEventListener("input", () => {
    state.smooth = slider.value / 100;
    document.getElementById("smooth-value").textContent = state.smooth.toFixed(2);
    drawAll();
  });
  const buttons = document.querySelectorAll("[data-axis]");
  for (const button of buttons) {
    button.addEventListener("click", () => {
      state.axis = button.dataset.axis;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      drawAll();
    });
  }
  for (const block of document.querySelectorAll("details")) {
    block.addEventListener("toggle", () => {
      if (block.open) block.querySelectorAll("figure.panel").forEach(draw);
    });
  }
  document.documentElement.addEventListener("themechange", drawAll);
  const resized = new ResizeObserver((entries) => {
    for (const entry of entries) {
      const figure = entry.target.closest("figure");
      const chart = charts.get(figure);
      const width = Math.floor(entry.contentRect.width);
      if (chart && width && chart.width !== width) chart.setSize({ width, height: HEIGHT });
    }
  });
  for (const figure of figures) resized.observe(figure.querySelector(".plot"));
  drawAll();
})();
