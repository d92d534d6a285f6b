"use strict";
// The live page: one stream of changes from the server, drawn with textContent alone, so that no name becomes markup.
(() => {
  const token = location.hash.slice(1) || sessionStorage.getItem("token") || "";
  sessionStorage.setItem("token", token);
  const at = id => document.getElementById(id);
  const headers = {Authorization: "Bearer " + token};
  let state = null, open = sessionStorage.getItem("run") || "", shown = null, plots = [], heardAt = 0, stream = null;

  const make = (tag, values = {}, ...inside) => {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(values)) {
      if (key === "class") element.className = value;
      else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else element.setAttribute(key, value);
    }
    element.append(...inside.filter(each => each !== null && each !== undefined && each !== ""));
    return element;
  };
  const money = usd => {
    if (usd === null || usd === undefined) return "-";
    const digits = usd === 0 || Math.abs(usd) >= 0.1 ? 2 : 1 - Math.floor(Math.log10(Math.abs(usd)));
    return "$" + usd.toLocaleString("en-US", {minimumFractionDigits: digits, maximumFractionDigits: digits});
  };
  const between = row => {
    const [low, high] = [money(row.cost_usd - row.less_usd), money(row.cost_usd + row.more_usd)];
    return low === high ? money(row.cost_usd) : low + " to " + high;
  };
  const short = value => {
    if (value === null || value === undefined) return "-";
    for (const [by, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) if (value >= by) return (value / by).toPrecision(3) + unit;
    return value.toFixed(0);
  };
  const span = seconds => {
    if (seconds === null || seconds === undefined) return "-";
    const s = Math.round(seconds);
    if (s < 60) return s + "s";
    if (s < 3600) return Math.floor(s / 60) + "m " + String(s % 60).padStart(2, "0") + "s";
    if (s < 86400) return Math.floor(s / 3600) + "h " + String(Math.floor(s % 3600 / 60)).padStart(2, "0") + "m";
    return Math.floor(s / 86400) + "d " + String(Math.floor(s % 86400 / 3600)).padStart(2, "0") + "h";
  };
  const clock = epoch => epoch ? new Date(epoch * 1000).toLocaleString() : "-";
  const loss = value => value === null || value === undefined ? "-" : value.toFixed(4);
  const word = row => row.state === "ended" ? row.outcome || "ended" : row.stage || row.state;
  const tone = row => row.outcome === "finished" ? "good" : row.state === "ended" || row.seen === "unknown" ? "bad" : "";
  const title = row => row.name || row.id;

  const runRow = row => {
    const part = row.total_steps ? Math.min(100, 100 * row.step / row.total_steps) : 0;
    const seen = row.state === "ended" ? "" : row.seen_s === null ? "not seen yet" : (row.seen === "unknown" ? "unknown, " : "") + "seen " + span(row.seen_s) + " ago";
    const safe = row.safe_step === null ? "" : "safe: step " + row.safe_step;
    const bar = make("span", {class: "progress"}, make("i"));
    bar.firstChild.style.width = part + "%";
    return make("li", {}, make("button", {
      "aria-expanded": String(row.id === open), "aria-label": `${title(row)}, ${word(row)}, step ${row.step} of ${row.total_steps}`,
      "data-run": row.id, onclick: () => choose(row.id === open ? "" : row.id),
    },
      make("span", {class: "name"}, title(row), make("small", {}, `${row.recipe} on ${row.host}`)),
      make("span", {class: "state " + tone(row)}, word(row), make("small", {}, seen)),
      make("span", {class: "n step"}, `${row.step.toLocaleString()}/${(row.total_steps || 0).toLocaleString()}`, make("small", {}, row.state === "ended" ? "" : "ETA " + span(row.eta_s))),
      make("span", {class: "n aside"}, loss(row.val_loss ?? row.loss), make("small", {}, row.val_loss !== null ? "validation" : row.loss !== null ? "training" : "")),
      make("span", {class: "n"}, between(row), make("small", {}, row.state === "ended" ? safe : row.price_per_hour_usd ? money(row.price_per_hour_usd) + "/h" : "yours")),
      row.state === "ended" ? null : bar,
    ));
  };

  const svg = (tag, values, ...inside) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(values)) element.setAttribute(key, value);
    element.append(...inside);
    return element;
  };
  const meter = (label, spent, forecast, ceiling, words) => {
    const top = Math.max(ceiling || 0, forecast, spent) || 1, part = usd => Math.max(0, Math.min(100, 100 * usd / top)) + "%";
    const bar = make("span", {class: "meter", role: "img", "aria-label": `${label}: ${words}`}, make("i", {class: "later"}), make("i", {class: ceiling && spent > ceiling ? "over" : ""}), ...(ceiling ? [make("b", {})] : []));
    bar.children[0].style.width = part(forecast);
    bar.children[1].style.width = part(spent);
    if (ceiling) bar.children[2].style.left = part(ceiling);
    return make("p", {}, make("span", {}, label), bar, make("small", {}, words));
  };
  const drawMoney = () => {
    const {month_usd, month_ceiling_usd} = state.totals, later = state.forecast;
    if (!(month_usd || month_ceiling_usd || later.month_usd)) return at("money").replaceChildren();
    const words = [`${money(month_usd)} so far`, later.month_usd > month_usd ? `${later.unknown ? "at least " : ""}${money(later.month_usd)} when what trains now ends` : "",
      month_ceiling_usd ? `ceiling ${money(month_ceiling_usd)}` : "no ceiling", later.ceiling_at ? `at this rate reached ${clock(later.ceiling_at)}` : ""].filter(Boolean).join(" · ");
    at("money").replaceChildren(meter("This month", month_usd, later.month_usd, month_ceiling_usd, words));
  };
  const words = {better: "better than the baseline, beyond its band", worse: "worse than the baseline, beyond its band", within: "within the baseline's band"};
  const panel = (arm, sweep, scale) => {
    const [width, height] = [200, 84], x = step => 4 + (width - 8) * step / scale.steps, y = value => height - 4 - (height - 8) * (value - scale.low) / (scale.high - scale.low);
    const line = points => points.map(([step, value], index) => (index ? "L" : "M") + x(step).toFixed(1) + " " + y(value).toFixed(1)).join("");
    const band = sweep.base.length > 1 ? line([...sweep.base.map(([step, value]) => [step, value + sweep.half]), ...sweep.base.map(([step, value]) => [step, value - sweep.half]).reverse()]) + "Z" : "";
    const last = arm.curve.at(-1), says = arm.is_baseline ? "the baseline" : arm.delta === null ? "nothing to compare yet" : `${arm.delta < 0 ? "" : "+"}${arm.delta.toFixed(4)}, ${words[arm.verdict]}`;
    const picture = svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${arm.arm}, seed ${arm.seed}: validation loss ${last ? last[1].toFixed(4) + " at step " + last[0] : "not measured yet"}; ${says}`},
      svg("path", {d: band, class: "band"}), svg("path", {d: line(sweep.base), class: "base"}), svg("path", {d: line(arm.curve), class: "own " + arm.verdict}),
      ...(last ? [svg("circle", {cx: x(last[0]), cy: y(last[1]), r: 2.6, class: "own " + arm.verdict})] : []));
    return make("button", {class: "panel", "data-arm": arm.run, onclick: () => choose(arm.run)},
      make("span", {class: "name"}, arm.arm, make("small", {}, `seed ${arm.seed} · ${arm.state} · ${arm.step.toLocaleString()}/${arm.total_steps.toLocaleString()}`)), picture,
      make("span", {class: "said " + arm.verdict}, last ? last[1].toFixed(4) : "-", make("small", {}, says)));
  };
  const drawSweeps = () => at("sweeps").replaceChildren(...state.sweeps.flatMap(sweep => {
    const points = [...sweep.arms.flatMap(arm => arm.curve)], values = points.map(point => point[1]).concat(sweep.base.flatMap(point => [point[1] + sweep.half, point[1] - sweep.half]));
    const scale = {steps: Math.max(1, ...sweep.arms.map(arm => arm.total_steps)), low: Math.min(...values, Infinity), high: Math.max(...values, -Infinity)};
    if (!(scale.high > scale.low)) [scale.low, scale.high] = [0, 1];
    const spent = sweep.ceiling_usd ? `${money(sweep.spent_usd)} of at most ${money(sweep.ceiling_usd)}` : `${money(sweep.spent_usd)}, no ceiling`;
    return [make("h2", {}, "Sweep " + sweep.name), make("p", {class: "soft"}, `${sweep.arms.length} runs, ${spent}. Band: ${sweep.noise}.`), make("div", {class: "panels"}, ...sweep.arms.map(arm => panel(arm, sweep, scale)))];
  }));

  const table = (columns, rows) => {
    const head = make("tr", {}, ...columns.map(name => make("th", {scope: "col"}, name)));
    const body = rows.map(cells => make("tr", {}, ...cells.map((cell, index) => make(index ? "td" : "th", index ? {} : {scope: "row"}, String(cell)))));
    return make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
  };

  const drawState = () => {
    at("totals").textContent = state.totals_words;
    drawMoney();
    drawSweeps();
    at("alarms").replaceChildren(
      ...state.left_over.map(row => make("p", {}, `${row.instance_id} (${row.machine}, ${money(row.price_per_hour_usd)}/h) is alive and nothing needs it. To end it: gptctl orphans --reap ${row.instance_id}`)),
      ...state.runs.filter(row => row.store && row.store.problem && row.state !== "ended").map(row => make("p", {}, `${title(row)}: checkpoint store: ${row.store.problem}`)),
      ...state.actions.filter(each => each.exit_code).map(each => make("p", {}, `${each.verb} ${each.run}: exit ${each.exit_code}: ${each.said}`)),
    );
    const focused = document.activeElement && document.activeElement.dataset.run;
    at("runs").replaceChildren(...state.runs.map(runRow));
    if (focused) at("runs").querySelector(`[data-run="${CSS.escape(focused)}"]`)?.focus();
    at("hidden").textContent = state.hidden ? `${state.hidden} older runs are hidden; gptctl status --all shows them` : state.runs.length ? "" : "No runs yet. Start one: gptctl run quickstart --host local";
    const alive = state.rentals.filter(row => row.state !== "released");
    const deadline = row => state.runs.find(run => run.rental === row.id)?.guard;
    const guarded = guard => !guard || guard.kind === "none" ? "-" : guard.kind + (guard.armed ? "" : " (not armed)");
    at("machines").replaceChildren(alive.length ? table(
      ["Machine", "Host", "$/h", "Cost", "Guard", "Ends"],
      alive.map(row => [row.machine, row.host, row.price_per_hour_usd ? money(row.price_per_hour_usd) : "yours", between(row), guarded(deadline(row)), clock(deadline(row)?.ends_at)]),
    ) : make("p", {class: "soft"}, "none is rented"));
  };

  const ask = async (verb, id) => {
    const url = `api/runs/${encodeURIComponent(id)}/${verb}`;
    const asked = await (await fetch(url, {headers})).json();
    if (asked.error) return alert(asked.error);
    if (!confirm(asked.question)) return;
    const answer = await fetch(url, {method: "POST", headers: {...headers, "Content-Type": "application/json"}, body: JSON.stringify({agreed_to: asked.question})});
    const said = await answer.json();
    if (said.error) alert(said.error);
  };

  const drawRun = () => {
    const place = at("run");
    plots.forEach(plot => plot.destroy());
    plots = [];
    place.hidden = !shown;
    if (!shown) return place.replaceChildren();
    const run = shown, ended = run.state === "ended";
    const facts = [
      ["State", word(run)], ["Step", `${run.step.toLocaleString()} of ${(run.total_steps || 0).toLocaleString()}`], ["Loss", loss(run.loss)],
      ["Validation", loss(run.val_loss)], ["Speed", short(run.tokens_per_second) + " tok/s"], ["Cost", between(run)],
      ["Left", ended ? "-" : span(run.eta_s)], ["Safe elsewhere", run.safe_step === null ? "nothing yet" : "step " + run.safe_step],
    ];
    const acts = state && state.may_act ? make("div", {class: "acts"},
      ...(ended ? [] : [make("button", {onclick: () => ask("stop", run.id), class: "danger"}, "Stop")]),
      ...(ended ? [] : [make("button", {onclick: () => ask("resume", run.id)}, "Resume")]),
      make("button", {onclick: () => ask("fetch", run.id)}, "Fetch"),
      ...(run.rental && !ended ? [make("button", {onclick: () => ask("release", run.id), class: "danger"}, "Release machine")] : []),
    ) : null;
    const figures = run.charts.map((chart, index) => {
      const plot = make("div", {class: "plot", role: "img", "aria-label": chart.title + " over " + chart.x});
      return make("figure", {class: index ? "card" : "card wide"}, make("h3", {}, chart.title, chart.unit ? make("small", {}, chart.unit) : null), plot);
    });
    place.replaceChildren(
      make("h2", {}, run.title), make("p", {class: "soft"}, `${run.recipe} on ${run.host} (${run.machine})`),
      run.cause ? make("p", {class: "note"}, run.cause) : "",
      make("dl", {class: "key"}, ...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
      acts, make("div", {class: "charts"}, ...figures),
      make("h2", {}, "Checkpoints"), run.checkpoints.length ? make("div", {class: "scroll"}, table(["Step", "Which", "Where"], run.checkpoints.map(each => [each.step, each.is.join(", ") || "-", each.where]))) : make("p", {class: "soft"}, "none yet"),
      make("h2", {}, "Events"), make("div", {class: "scroll"}, table(["Time", "Stage", "What"], run.events.slice(0, 20).map(each => [each.time, each.stage, each.text]))),
      make("h2", {}, "Log"), make("pre", {id: "log", tabindex: "0"}, run.log || "nothing yet"),
    );
    plots = run.charts.map((chart, index) => drawChart(chart, figures[index].querySelector(".plot")));
    at("log").scrollTop = at("log").scrollHeight;
    document.documentElement.dataset.step = String(run.step);
  };

  const choose = id => {
    open = id;
    sessionStorage.setItem("run", id);
    shown = id ? shown : null;
    if (!id) drawRun();
    if (state) drawState();
    connect();
  };

  const linked = (text, good) => { at("link").textContent = text; at("link").className = good ? "soft" : "bad"; };
  const heard = {
    state: data => { state = data; drawState(); },
    run: data => { if (data.id === open) { const first = !shown || shown.id !== data.id; shown = data; drawRun(); if (first) at("run").focus({preventScroll: true}); } },
    beat: () => {},
  };

  // fetch and not EventSource, which cannot send the token in a header.
  const connect = async () => {
    if (stream) stream.abort();
    const mine = stream = new AbortController();
    try {
      const answer = await fetch("api/stream" + (open ? "?run=" + encodeURIComponent(open) : ""), {headers, signal: mine.signal});
      if (!answer.ok) return linked((await answer.json()).error || "refused", false);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let pending = "";;) {
        const {done, value} = await reader.read();
        if (done) break;
        heardAt = Date.now();
        linked("live", true);
        const parts = (pending + value).split("\n\n");
        pending = parts.pop();
        for (const part of parts) {
          const [first, second] = part.split("\n");
          heard[first.slice(7)]?.(JSON.parse(second.slice(6)));
        }
      }
    } catch (error) {
      if (mine.signal.aborted) return;
    }
    if (mine === stream) { linked("gptctl ui does not answer; trying again", false); setTimeout(() => mine === stream && connect(), 2000); }
  };

  // A laptop that slept keeps a dead connection: without a beat for 30 seconds, begin anew.
  setInterval(() => { if (heardAt && Date.now() - heardAt > 30000) { heardAt = Date.now(); connect(); } }, 5000);
  document.addEventListener("visibilitychange", () => { if (!document.hidden && Date.now() - heardAt > 15000) connect(); });
  let width = window.innerWidth;
  window.addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; drawRun(); } });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawRun);
  connect();
})();
