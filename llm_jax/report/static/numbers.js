// How the page's scripts write numbers, find colours and choose ticks.
globalThis.report = (() => {
  "use strict";
  const probe = document.createElement("i");
  probe.hidden = true;
  document.body.append(probe);
  const dot = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  dot.canvas.width = dot.canvas.height = 1;

  // Any CSS colour as rgba(): a picture outside the page knows no variables and no color-mix().
  function resolved(css, alpha = 1) {
    dot.clearRect(0, 0, 1, 1);
    dot.fillStyle = css;
    dot.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = dot.getImageData(0, 0, 1, 1).data;
    return `rgba(${r}, ${g}, ${b}, ${+((a / 255) * alpha).toFixed(3)})`;
  }

  function color(name, alpha = 1) {
    probe.style.color = `var(--${name})`;
    return resolved(getComputedStyle(probe).color, alpha);
  }

  const UNITS = [["E", 1e18], ["P", 1e15], ["T", 1e12], ["G", 1e9], ["M", 1e6]];

  function compact(value, digits = 3) {
    if (value === null || value === undefined) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    const [unit, scale] = UNITS.find(([, least]) => size >= least) ?? ["", 1];
    let text;
    if (unit) text = `${+(value / scale).toPrecision(digits)}${unit}`;
    else if (size >= 1e4) text = `${+(value / 1e3).toPrecision(digits)}k`;
    else if (size < 1e-4) text = value.toExponential(Math.max(1, digits - 3));
    else text = `${+value.toPrecision(size >= 1000 ? Math.max(4, digits) : digits)}`;
    return text.replace(/-/g, "−");
  }

  function percent(value, digits = 3) {
    if (value === null || value === undefined) return "–";
    return `${+(100 * value).toPrecision(digits)} %`.replace(/-/g, "−");
  }

  function clock(value, digits = 3) {
    if (value < 120) return `${+value.toPrecision(digits)} s`;
    if (value < 7200) return `${+(value / 60).toPrecision(digits)} min`;
    return `${+(value / 3600).toPrecision(digits)} h`;
  }

  // The labels of an axis, with as many digits as tell its ticks, and tell them apart.
  function labels(values, show) {
    const off = (value, digits) =>
      Math.abs(+value.toPrecision(digits) - value) > 1e-9 * Math.abs(value);
    for (let digits = 3; ; digits++) {
      const found = values.map((value) => (value === null ? "" : show(value, digits)));
      const apart = new Set(found).size === found.length;
      // A minute is no power of ten: no number of digits is enough.
      const told = show === clock || !values.some((value) => value !== null && off(value, digits));
      if (digits > 6 || (apart && told)) return found;
    }
  }

  // Round values within [low, high]: about as many as wanted, of a logarithm 1, 2 and 5.
  function ticks(low, high, about, log) {
    if (log && low > 0 && high / low >= 4) {
      const found = [];
      const first = Math.floor(Math.log10(low));
      const wide = Math.log10(high / low) > about;
      for (let power = first; 10 ** power <= high; power++) {
        for (const digit of wide ? [1] : [1, 2, 5]) {
          const value = digit * 10 ** power;
          if (value >= low && value <= high) found.push(value);
        }
      }
      return found;
    }
    const rough = (high - low) / about;
    if (!(rough > 0)) return [low];
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) {
      found.push(+(i * step).toPrecision(12));
    }
    return found;
  }

  return { resolved, color, compact, percent, clock, labels, ticks };
})();
