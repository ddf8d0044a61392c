// The accuracy chart: uPlot, drawn from the JSON that the server puts into #accuracy-data.
"use strict";

const shoalChart = (() => {
  const COLOURS = 8;
  const MARKS = { drift: ["--bad", "D"], harm: ["--warn", "H"], retraining: ["--series-4", "T"], rollout: ["--busy", "R"] };
  const hidden = new Set(); // subjects that the viewer switched off; kept across refreshes
  let plot = null;
  let shape = ""; // what the present plot was built for: another set of lines needs another plot
  let chart = null;

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const percent = (value) => (value == null ? "–" : (value * 100).toFixed(1) + " %");
  const subjects = () => [...new Set(chart.series.map((one) => one.subject))];
  const colour = (subject) =>
    subject === "fleet" ? css("--ink") : css(`--series-${(subjects().filter((one) => one !== "fleet").indexOf(subject) % COLOURS) + 1}`);

  function data() {
    return [chart.times, ...chart.series.map((one) => one.values)];
  }

  // The lowest value decides where the axis begins, in steps of ten points: the interesting part fills the room.
  function range() {
    let low = chart.promised ?? 1;
    for (const one of chart.series) {
      if (hidden.has(one.subject)) continue;
      for (const value of one.values) if (value != null && value < low) low = value;
    }
    return [Math.max(0, Math.floor(low * 10 - 0.5) / 10), 1.005];
  }

  // How sure the fleet's line is: a light band, one piece per unbroken stretch. Devices' own would cover each other.
  function drawBand(u) {
    const one = chart.series.find((line) => line.subject === "fleet" && !line.estimated);
    if (one === undefined || hidden.has("fleet")) return;
    const { ctx } = u;
    const at = (index, value) => [u.valToPos(chart.times[index], "x", true), u.valToPos(value, "y", true)];
    ctx.save();
    ctx.beginPath();
    ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
    ctx.clip();
    ctx.fillStyle = css("--ink");
    ctx.globalAlpha = 0.09;
    for (let begin = 0; begin < one.values.length; begin++) {
      if (one.values[begin] == null) continue;
      let end = begin;
      while (one.values[end + 1] != null) end++;
      ctx.beginPath();
      for (let index = begin; index <= end; index++) ctx.lineTo(...at(index, one.high[index]));
      for (let index = end; index >= begin; index--) ctx.lineTo(...at(index, one.low[index]));
      ctx.fill();
      begin = end;
    }
    ctx.restore();
  }

  function drawMarks(u) {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.textAlign = "left";
    ctx.lineWidth = 1.5 * devicePixelRatio;
    if (chart.promised != null) {
      const y = Math.round(u.valToPos(chart.promised, "y", true));
      ctx.strokeStyle = css("--quiet");
      ctx.setLineDash([2 * devicePixelRatio, 4 * devicePixelRatio]);
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
    }
    ctx.setLineDash([]);
    let lastX = -Infinity, row = 0; // letters of marks that stand close together go below each other
    for (const mark of chart.marks) {
      const x = Math.round(u.valToPos(mark.at, "x", true));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      const [name, letter] = MARKS[mark.kind];
      ctx.strokeStyle = ctx.fillStyle = css(name);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      row = x - lastX < 14 * devicePixelRatio ? row + 1 : 0;
      lastX = x;
      ctx.fillText(letter, x + 3 * devicePixelRatio, bbox.top + (11 + 12 * row) * devicePixelRatio);
    }
    ctx.restore();
  }

  // Ticks closer than a minute would repeat it, those of several days the hour.
  function ticks(values, step) {
    const shown = { hour: "2-digit", hourCycle: "h23" };
    if (chart.until - chart.from > 36 * 3600) Object.assign(shown, { day: "numeric", month: "short" });
    else Object.assign(shown, { minute: "2-digit" }, step < 60 ? { second: "2-digit" } : {});
    const format = new Intl.DateTimeFormat(undefined, shown);
    return values.map((value) => format.format(new Date(value * 1000)));
  }

  function options(room) {
    const times = (_u, values, _axis, _space, step) => ticks(values, step);
    const axis = { stroke: css("--quiet"), grid: { stroke: css("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    return {
      width: room.clientWidth,
      height: room.clientHeight,
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
      scales: { x: { time: true, range: () => [chart.from, chart.until] }, y: { range } },
      axes: [{ ...axis, size: 24, space: 70, values: times }, { ...axis, size: 42, values: (_u, values) => values.map((v) => Math.round(v * 100) + " %") }],
      series: [
        {},
        ...chart.series.map((one) => ({
          label: one.label,
          stroke: colour(one.subject),
          width: one.subject === "fleet" ? 2.5 : 1.5,
          dash: one.estimated ? [5, 4] : undefined,
          alpha: one.estimated ? 0.75 : 1,
          show: !hidden.has(one.subject),
          points: { show: true, filter: (_u, index) => lonely(chart.series[index - 1].values), size: 4 },
        })),
      ],
      hooks: { drawAxes: [drawBand], draw: [drawMarks], setCursor: [() => values()] },
    };
  }

  // Values without a neighbour, which no line shows.
  const lonely = (values) => values.flatMap((value, at) => (value != null && values[at - 1] == null && values[at + 1] == null ? [at] : []));

  // At the cursor, else of the present; from labels where there are any, else the estimate, and marked as such.
  function legendText(subject, index) {
    const lines = chart.series.filter((one) => one.subject === subject);
    const at = (one) => (index == null ? one.now : one.values[index]);
    const measured = lines.find((one) => !one.estimated && at(one) != null);
    const estimated = lines.find((one) => one.estimated && at(one) != null);
    if (measured === undefined) return estimated === undefined ? "–" : `est. ${percent(at(estimated))}`;
    const spread = index == null ? measured.spread : (measured.high[index] - measured.low[index]) / 2;
    return `${percent(at(measured))} ±${(spread * 100).toFixed(0)}`;
  }

  function values() {
    for (const button of document.querySelectorAll("#accuracy-legend button")) {
      const text = legendText(button.dataset.subject, plot.cursor.idx);
      if (button.lastChild.textContent !== text) button.lastChild.textContent = text;
    }
  }

  function legendButton(subject) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.subject = subject;
    button.title = `show or hide ${subject}`;
    button.setAttribute("aria-pressed", String(!hidden.has(subject)));
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [key, value] of Object.entries({ y: "30%", width: "100%", height: "40%", fill: colour(subject) })) rect.setAttribute(key, value);
    svg.setAttribute("aria-hidden", "true");
    svg.append(rect);
    const name = document.createElement("span");
    name.textContent = subject;
    const value = document.createElement("span");
    value.className = "value";
    button.append(svg, name, value);
    button.addEventListener("click", () => toggle(button, subject));
    return button;
  }

  function toggle(button, subject) {
    const show = hidden.has(subject);
    if (show) hidden.delete(subject);
    else hidden.add(subject);
    button.setAttribute("aria-pressed", String(show));
    chart.series.forEach((one, index) => one.subject === subject && plot.setSeries(index + 1, { show }));
    plot.setData(data());
  }

  function rebuild(room) {
    plot?.destroy();
    plot = null;
    room.classList.remove("drawn");
    document.getElementById("accuracy-legend").replaceChildren();
    if (chart.series.length === 0 || room.clientWidth === 0) return;
    document.getElementById("accuracy-legend").append(...subjects().map(legendButton));
    plot = new uPlot(options(room), data(), room);
    room.classList.add("drawn");
    values();
  }

  function update(force = false) {
    const source = document.getElementById("accuracy-data");
    const room = document.getElementById("accuracy-chart");
    chart = JSON.parse(source.dataset.chart);
    const wanted = JSON.stringify(chart.series.map((one) => one.label));
    if (force || wanted !== shape || plot === null) {
      shape = wanted;
      rebuild(room);
    } else {
      plot.setData(data());
      values();
    }
  }

  function resize() {
    const room = document.getElementById("accuracy-chart");
    if (plot === null) update(true);
    else if (room.clientWidth > 0) plot.setSize({ width: room.clientWidth, height: room.clientHeight });
  }

  return { update, resize, ticks };
})();
