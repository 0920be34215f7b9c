// Draws the training curves with uPlot from the JSON that the page carries.
(() => {
  "use strict";
  const payload = JSON.parse(document.getElementById("payload").textContent);
  const state = { smooth: 0.6, axis: "x", log: false };
  const charts = new Map(); // figure -> { chart, model }
  const HEIGHT = 168;
  const FEW = 30; // Fewer points than that are shown as they are: an average would only lag.
  const { color, compact, percent, clock, labels, ticks } = globalThis.report;

  // Each axis: its name in the JSON, a column of it, and how a value of it reads.
  const AXES = {
    x: { label: "step", column: (stage) => stage.x, show: compact, say: (v) => `step ${v}` },
    k: {
      label: "tokens",
      column: (stage) => stage.x.map((step) => step * stage.k),
      show: compact,
      say: (v) => `${compact(v)} tokens`,
    },
    f: {
      label: "FLOPs",
      column: (stage) => stage.x.map((step) => step * stage.f),
      show: compact,
      say: (v) => `${compact(v)} FLOPs`,
    },
    t: { label: "seconds", column: (stage) => stage.t, show: clock, say: clock },
  };

  const source = (panel, series) => series.from ?? panel.stage;

  // A stage that lacks an axis is drawn against steps, and its legend says so.
  function axisOf(panel) {
    const has = panel.series.every((one) => state.axis in payload.stages[source(panel, one)]);
    return AXES[has ? state.axis : "x"];
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

  const known = (value) => value !== null && value !== undefined;

  function lastOf(values) {
    for (let i = values.length - 1; i >= 0; i--) if (known(values[i])) return i;
    return null;
  }

  function nearest(values, index) {
    for (let d = 0; d < values.length; d++) {
      if (known(values[index - d])) return index - d;
      if (known(values[index + d])) return index + d;
    }
    return null;
  }

  // The lines of a chart, the faint ones first: each has its own column of x.
  function layers(panel, axis) {
    const out = [];
    panel.series.forEach((one, owner) => {
      const stage = payload.stages[source(panel, one)];
      const values = stage.y[one.key];
      const present = values.filter(known).length;
      const own = { owner, from: source(panel, one), xs: axis.column(stage), color: one.color };
      own.dash = one.dash ? [5, 3] : null;
      if (one.dots) {
        out.push({ ...own, values, width: 1.4, alpha: 1, dots: present < 60, raw: true });
        return;
      }
      const faint = state.smooth > 0 && !panel.exact && present >= FEW;
      const look = faint ? { width: 1, alpha: 0.28 } : { width: 1.6, alpha: 1 };
      out.push({ ...own, values, ...look, dots: present < 3, raw: true });
      if (faint) out.push({ ...own, values: smoothed(values, state.smooth), width: 2, alpha: 1 });
    });
    return out;
  }

  // One column of x for all lines; a logarithm has no room for zero.
  function aligned(lines) {
    const parts = lines.map(({ xs, values }) => {
      const kept = state.log ? xs.map((x, i) => i).filter((i) => xs[i] > 0) : null;
      return kept ? [kept.map((i) => xs[i]), kept.map((i) => values[i])] : [xs, values];
    });
    const alone = new Set(lines.map((line) => line.from)).size === 1;
    return alone ? [parts[0][0], ...parts.map((part) => part[1])] : uPlot.join(parts);
  }

  function legend(box, panel, model) {
    const show = model.showY;
    const cells = panel.series.map((series) => {
      const item = document.createElement("span");
      const swatch = document.createElement("i");
      swatch.style.setProperty("--swatch", `var(--${series.color})`);
      swatch.className = series.dots ? "dot" : series.dash ? "dash dashed" : "dash";
      const value = document.createElement("b");
      item.append(swatch, document.createTextNode(series.label), value);
      box.append(item);
      return value;
    });
    const where = document.createElement("span");
    where.className = "where";
    box.append(where);
    const [xs] = model.data;
    const rows = panel.series.map((_, owner) => {
      const at = model.layers.findIndex((line) => line.owner === owner && line.raw);
      return model.data[at + 1];
    });
    return (index) => {
      rows.forEach((values, i) => {
        const at = index === null ? lastOf(values) : nearest(values, index);
        cells[i].textContent = at === null ? "–" : show(values[at]);
      });
      where.textContent = xs.length ? model.axis.say(xs[index ?? xs.length - 1]) : "";
    };
  }

  function reference(panel) {
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
      ctx.fillStyle = color("bad");
      ctx.textAlign = "center";
      ctx.textBaseline = "top";
      for (const mark of marks(panel)) {
        const x = u.valToPos(mark.x, "x", true);
        if (x >= bbox.left && x <= bbox.left + bbox.width) ctx.fillText("▼", x, bbox.top);
      }
      ctx.restore();
    };
  }

  const marks = (panel) =>
    (panel.marks ?? []).map(({ at, label }) => ({
      x: axisOf(panel).column(payload.stages[panel.stage])[at],
      label,
    }));

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
      const flat = high - low <= 1e-6 * size;
      const pad = flat ? size * 0.5 || 1 : (high - low) * 0.06;
      // A quantity that is never negative keeps its natural floor.
      const floor = low >= 0 && low - pad < 0 ? 0 : low - pad;
      const full = panel.unit === "percent" && high <= 1;
      return [floor, full ? Math.min(high + pad, 1.02) : high + pad];
    };
  }

  function axes(model) {
    const common = {
      stroke: color("soft"),
      font: "11px system-ui, sans-serif",
      grid: { stroke: color("line"), width: 1 },
      ticks: { show: false },
    };
    const across = { ...common, size: 24, gap: 4, space: 64 };
    across.values = (u, at) => labels(at, model.axis.show);
    if (state.log) {
      across.splits = (u, i, low, high) => ticks(low, high, 5, true);
      across.filter = (u, splits) => splits;
    }
    return [
      across,
      { ...common, size: 50, gap: 4, space: 24, values: (u, at) => labels(at, model.showY) },
    ];
  }

  function draw(figure) {
    const panel = payload.panels[+figure.dataset.panel];
    const plot = figure.querySelector(".plot");
    const box = figure.querySelector(".legend");
    const width = plot.clientWidth;
    if (!width) return; // Inside a closed block; drawn when it opens.
    charts.get(figure)?.chart.destroy();
    box.replaceChildren();
    const axis = axisOf(panel);
    const lines = layers(panel, axis);
    const showY = panel.unit === "percent" ? percent : compact;
    const model = { panel, axis, layers: lines, data: aligned(lines), showY, log: state.log };
    model.marks = marks(panel);
    const update = legend(box, panel, model);
    const across = state.log ? { distr: 3, range: (u, low, high) => [low ?? 1, high ?? 10] } : {};
    const series = lines.map((line) => ({
      stroke: color(line.color, line.alpha),
      width: line.width,
      dash: line.dash ?? undefined,
      spanGaps: true,
      points: { show: line.dots, size: 5, fill: color(line.color), width: 0 },
    }));
    const options = {
      width,
      height: HEIGHT,
      series: [{}, ...series],
      axes: axes(model),
      scales: { x: { time: false, ...across }, y: { range: range(panel) } },
      legend: { show: false },
      padding: [6, 14, 0, 0],
      cursor: {
        y: false,
        points: { size: 6, width: 0 },
        sync: { key: panel.about ?? panel.stage },
      },
      hooks: { draw: [reference(panel)], setCursor: [(u) => update(u.cursor.idx ?? null)] },
    };
    charts.set(figure, { chart: new uPlot(options, model.data, plot), model });
    update(null);
  }

  const figures = [...document.querySelectorAll("figure.panel")];
  const drawAll = () => figures.forEach(draw);
  globalThis.report.charts = charts;

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
  const log = document.getElementById("log-x");
  log?.addEventListener("click", () => {
    state.log = !state.log;
    log.setAttribute("aria-pressed", String(state.log));
    drawAll();
  });
  for (const block of document.querySelectorAll("details")) {
    block.addEventListener("toggle", () => {
      if (block.open) block.querySelectorAll("figure.panel").forEach(draw);
    });
  }
  document.documentElement.addEventListener("themechange", drawAll);
  const resized = new ResizeObserver((entries) => {
    for (const entry of entries) {
      const figure = entry.target.closest("figure");
      const chart = charts.get(figure)?.chart;
      const width = Math.floor(entry.contentRect.width);
      if (chart && width && chart.width !== width) chart.setSize({ width, height: HEIGHT });
    }
  });
  for (const figure of figures) resized.observe(figure.querySelector(".plot"));
  drawAll();
})();
