"use strict";
// The live page: one stream of changes from the server, drawn with textContent alone, so that no name becomes markup.
(() => {
  const token = location.hash.slice(1) || sessionStorage.getItem("token") || "";
  sessionStorage.setItem("token", token);
  const at = id => document.getElementById(id);
  const headers = {Authorization: "Bearer " + token};
  const FEW = 8, QUIET_MS = 30000, HIDDEN_MS = 60000;
  let state = {runs: {}, sweeps: {}, runs_order: [], sweeps_order: []}, open = sessionStorage.getItem("run") || "", shown = null, plots = [], heardAt = 0, stream = null;
  let found = null, more = false, ahead = 0;
  const now = () => Date.now() / 1000 + ahead;  // by the clock of the computer that serves

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
  const moment = epoch => {
    const at = new Date(epoch * 1000), today = at.toDateString() === new Date().toDateString(), time = {hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23"};
    return at.toLocaleString(undefined, today ? time : {month: "short", day: "numeric", ...time});
  };
  const clock = epoch => epoch ? new Date(epoch * 1000).toLocaleString() : "-";
  const loss = value => value === null || value === undefined ? "-" : value.toFixed(4);
  // `follow` is the stage in which a machine trains.
  const word = row => row.state === "ended" ? row.outcome || "ended" : row.ahead !== null ? `queued (${row.ahead + 1})` : row.state === "training" ? "training" : row.stage || row.state;
  const tone = row => row.outcome === "finished" ? "good" : row.state === "ended" ? "bad" : "";
  const title = row => row.name || (row.labels.arm ? `${row.labels.arm}, seed ${row.labels.seed}` : row.id);
  const steps = row => row.total_steps ? `${row.step.toLocaleString()} of ${row.total_steps.toLocaleString()}` : row.step.toLocaleString();

  // A run is one item of the list for as long as it is shown: what changed is written into it, so that focus stays.
  const rowParts = row => {
    const part = row.total_steps ? Math.min(100, 100 * row.step / row.total_steps) : 0, ended = row.state === "ended";
    const seen = ended ? "" : row.seen_at === null ? "not seen yet" : (row.seen === "unknown" ? "unknown, " : "") + "seen " + span(Math.max(0, now() - row.seen_at)) + " ago";
    const bar = ended ? null : make("span", {class: "progress"}, make("i"));
    if (bar) bar.firstChild.style.width = part + "%";
    return [
      make("span", {class: "name"}, title(row), make("small", {}, `${row.recipe} on ${row.host}`)),
      make("span", {class: "state " + tone(row)}, word(row), make("small", {}, seen)),
      make("span", {class: "n step"}, steps(row), make("small", {}, ended || row.eta_s === null ? "" : span(row.eta_s) + " left")),
      make("span", {class: "n aside"}, loss(row.val_loss ?? row.loss), make("small", {}, row.val_loss !== null ? "validation loss" : row.loss !== null ? "training loss" : "")),
      make("span", {class: "n cost"}, between(row), make("small", {}, row.safe_step !== null ? `step ${row.safe_step.toLocaleString()} safe` : ended ? "" : row.price_per_hour_usd ? money(row.price_per_hour_usd) + "/h" : "")),
      bar,
    ].filter(Boolean);
  };
  const fill = (item, row) => {
    const button = item.firstChild;
    button.setAttribute("aria-expanded", String(row.id === open));
    button.setAttribute("aria-label", `${title(row)}, ${word(row)}, step ${row.step} of ${row.total_steps}`);
    button.replaceChildren(...rowParts(row));
    item.row = row;
  };
  const items = new Map();
  const itemOf = row => {
    let item = items.get(row.id);
    if (!item) items.set(row.id, item = make("li", {}, make("button", {"data-run": row.id, onclick: () => choose(row.id === open ? "" : row.id)})));
    if (item.row !== row || item.open !== (row.id === open)) fill(item, row);
    item.open = row.id === open;
    return item;
  };
  const drawRuns = () => {
    const rows = found ?? state.runs_order.map(id => state.runs[id]).filter(Boolean), ended = rows.filter(row => row.state === "ended");
    const few = found || more ? rows : [...rows.filter(row => row.state !== "ended"), ...ended.slice(0, FEW)];
    if (shown && open && !few.some(row => row.id === open)) few.unshift(shown);
    const wanted = few.map(itemOf), list = at("runs");
    wanted.forEach((item, index) => { if (list.children[index] !== item) list.insertBefore(item, list.children[index] ?? null); });
    while (list.children.length > wanted.length) { items.delete(list.lastChild.firstChild.dataset.run); list.lastChild.remove(); }
    const place = at("run"), home = items.get(open);
    if (home && place.parentNode !== home) home.append(place);
    list.hidden = !few.length;
    at("more").hidden = Boolean(found) || ended.length <= FEW;
    at("more").textContent = more ? "Show fewer" : `Show ${ended.length - FEW} more that have ended`;
    at("hidden").textContent = found ? (few.length ? "" : "No run has that in its id, name, recipe, host, labels or note.")
      : !rows.length ? "No runs yet. Start one: gptctl run quickstart --host local" : state.hidden ? `${state.hidden.toLocaleString()} older runs: search finds them.` : "";
  };
  let searching = 0;
  const search = async () => {
    const text = at("search").value.trim(), mine = ++searching;
    const answer = text ? (await (await fetch("api/find?text=" + encodeURIComponent(text), {headers})).json()).runs : null;
    if (mine === searching) { found = answer; drawRuns(); }
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
  const drawSweeps = () => at("sweeps").replaceChildren(...state.sweeps_order.map(id => state.sweeps[id]).flatMap(sweep => {
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
    const rows = Object.values(state.runs);
    at("alarms").replaceChildren(
      ...state.left_over.map(row => make("p", {}, `${row.instance_id} (${row.machine}, ${money(row.price_per_hour_usd)}/h) is alive and nothing needs it. To end it: gptctl orphans --reap ${row.instance_id}`)),
      ...rows.filter(row => row.store && row.store.problem && row.state !== "ended").map(row => make("p", {}, `${title(row)}: checkpoint store: ${row.store.problem}`)),
      ...state.actions.filter(each => each.exit_code).map(each => make("p", {}, `${each.verb} ${each.run}: exit ${each.exit_code}: ${each.said}`)),
    );
    drawRuns();
    const alive = state.rentals.filter(row => row.state !== "released");
    const deadline = row => rows.find(run => run.rental === row.id)?.guard;
    const guarded = guard => !guard || guard.kind === "none" ? "-" : guard.kind + (guard.armed ? "" : " (not armed)");
    at("machines").replaceChildren(alive.length ? table(
      ["Machine", "Host", "$/h", "Cost", "Guard", "Ends"],
      alive.map(row => [row.machine, row.host, row.price_per_hour_usd ? money(row.price_per_hour_usd) : "yours", between(row), guarded(deadline(row)), clock(deadline(row)?.ends_at)]),
    ) : make("p", {class: "soft"}, "None is held."));
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

  // The open run: each piece is made anew only when what it shows has changed; curves get their new points.
  const piece = (name, shows, build) => {
    const place = at("run").querySelector(`[data-piece=${name}]`), text = JSON.stringify(shows);
    if (place.shows === text) return;
    place.shows = text;
    place.replaceChildren(...build().filter(each => each !== null && each !== ""));
  };
  const empty = text => make("p", {class: "soft"}, text);
  const scrolled = (columns, rows) => make("div", {class: "scroll"}, table(columns, rows));
  const drawRun = fresh => {
    const place = at("run");
    place.hidden = !shown;
    if (!shown || fresh || place.dataset.of !== shown.id) {
      plots.forEach(plot => plot.destroy());
      plots = [];
      place.dataset.of = shown ? shown.id : "";
      place.replaceChildren(...(shown ? ["head", "facts", "acts", "charts", "checkpoints", "events", "log"].map(name => make("div", {"data-piece": name})) : []));
    }
    if (!shown) return at("sweeps").before(place);
    const run = shown, ended = run.state === "ended";
    const facts = [
      ["State", word(run)], ["Step", steps(run)], ["Training loss", loss(run.loss)], ["Validation loss", loss(run.val_loss)],
      ["Speed", run.tokens_per_second ? short(run.tokens_per_second) + " tok/s" : "-"], ["Cost", between(run)],
      ended ? ["Took", run.started_at && run.ended_at ? span(run.ended_at - run.started_at) : "-"] : ["Left", span(run.eta_s)],
      ["Safe elsewhere", run.safe_step === null ? "nothing yet" : "step " + run.safe_step.toLocaleString()],
    ];
    const act = (verb, label, kind) => make("button", {onclick: () => ask(verb, run.id), class: kind || ""}, label);
    piece("head", [run.id, run.machine, run.cause, run.note], () => [make("p", {class: "soft"}, `${run.id} · ${run.machine}`), run.note ? make("p", {}, run.note) : null, run.cause ? make("p", {class: "note"}, run.cause) : null]);
    piece("facts", facts, () => [make("dl", {class: "key"}, ...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))))]);
    piece("acts", [state.may_act, ended, run.rental], () => state.may_act ? [make("div", {class: "acts"}, ...(ended ? [] : [act("stop", "Stop", "danger"), act("resume", "Resume")]), act("fetch", "Fetch"), ...(run.rental && !ended ? [act("release", "Release machine", "danger")] : []))] : []);
    drawCharts(run.charts);
    piece("checkpoints", run.checkpoints, () => [make("h2", {}, "Checkpoints"), run.checkpoints.length ? scrolled(["Step", "Which", "Where"], run.checkpoints.map(each => [each.step.toLocaleString(), each.is.join(", ") || "-", each.where])) : empty("None yet.")]);
    piece("events", run.events, () => [make("h2", {}, "Events"), run.events.length ? scrolled(["Time", "Stage", "What"], run.events.map(each => [moment(each.time), each.stage, each.text])) : empty("None yet.")]);
    const before = at("log"), follows = !before || before.scrollHeight - before.scrollTop - before.clientHeight < 40, scroll = before ? before.scrollTop : 0;
    piece("log", run.log, () => [make("h2", {}, "Log"), make("pre", {id: "log", tabindex: "0", "aria-label": "The end of the log"}, run.log || "Nothing yet.")]);
    at("log").scrollTop = follows ? at("log").scrollHeight : scroll;
    document.documentElement.dataset.step = String(run.step);
  };
  const drawCharts = charts => {
    piece("charts", charts.map(chart => [chart.title, chart.unit, chart.series.map(each => [each.label, each.kind])]), () => {
      plots.forEach(plot => plot.destroy());
      plots = [];
      return [make("div", {class: "charts"}, ...charts.map((chart, index) => make("figure", {class: index ? "card" : "card wide"}, make("h3", {}, chart.title, chart.unit ? make("small", {}, chart.unit) : null), make("div", {class: "plot", role: "img"}))))];
    });
    const places = at("run").querySelectorAll(".plot");
    charts.forEach((chart, index) => {
      places[index].setAttribute("aria-label", `${chart.title} over ${chart.x}, up to ${chart.x} ${chart.xs.at(-1)}`);
      const plot = plots[index], data = [chart.xs, ...chart.series.map(each => each.values)];
      if (!plot) return plots.push(drawChart(chart, places[index]));
      const {min, max} = plot.scales.x, zoomed = min > plot.data[0][0] || max < plot.data[0].at(-1);
      plot.setData(data, !zoomed);
      if (zoomed) plot.redraw();
    });
  };

  const choose = id => {
    open = id;
    sessionStorage.setItem("run", id);
    if (!id || (shown && shown.id !== id)) { shown = null; drawRun(); }
    drawRuns();
    connect();
  };

  const linked = (text, good) => { if (at("link").textContent !== text) at("link").textContent = text; at("link").className = good ? "soft" : "bad"; };
  const grown = (charts, tails) => charts.map((chart, index) => {
    const {from, xs, series} = tails[index], longer = (old, more) => [...old.slice(0, from), ...more];
    return {...chart, xs: longer(chart.xs, xs), series: chart.series.map((each, at) => ({...each, values: longer(each.values, series[at])}))};
  });
  const merged = (known, news, order) => Object.fromEntries(order.map(id => [id, news?.[id] ?? known[id]]));
  const heard = {
    state: data => {
      const order = kind => data[kind + "_order"] ?? state[kind + "_order"], before = state.sweeps;
      state = {...state, ...data, runs: merged(state.runs, data.runs, order("runs")), sweeps: merged(before, data.sweeps, order("sweeps"))};
      drawState();
    },
    run: ({tails, ...data}) => {
      if (data.id !== open) return;
      const first = !shown || shown.id !== data.id;
      shown = {...(first ? {} : shown), ...data};
      if (tails) shown.charts = grown(shown.charts, tails);
      drawRuns();
      drawRun();
      if (first) at("run").focus({preventScroll: true});
    },
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
          const [first, second] = part.split("\n"), {now: theirs, ...data} = JSON.parse(second.slice(6));
          ahead = theirs - Date.now() / 1000;
          try { heard[first.slice(7)]?.(data); } catch (error) { console.error(error); }
        }
      }
    } catch (error) {
      if (mine.signal.aborted) return;
    }
    if (mine === stream) { linked("gptctl ui does not answer; trying again", false); setTimeout(() => mine === stream && connect(), 2000); }
  };

  // A laptop that slept keeps a dead connection: without a beat for 30 seconds, begin anew. A page that nobody sees
  // hangs up after a minute, so that a phone in a pocket costs neither battery nor questions to machines.
  let hiddenAt = 0;
  setInterval(() => {
    for (const item of items.values()) if (item.row.state !== "ended") fill(item, item.row);
    if (document.hidden && hiddenAt && Date.now() - hiddenAt > HIDDEN_MS) { hiddenAt = heardAt = 0; stream?.abort(); linked("paused while hidden", true); }
    else if (heardAt && Date.now() - heardAt > QUIET_MS) { heardAt = Date.now(); connect(); }
  }, 5000);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) hiddenAt = Date.now();
    else if (Date.now() - heardAt > QUIET_MS / 2) connect();
  });
  let width = window.innerWidth;
  window.addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; drawRun(true); } });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawRun(true));
  at("more").addEventListener("click", () => { more = !more; drawRuns(); });
  at("search").addEventListener("input", () => search().catch(() => {}));
  connect();
})();
