// The sequence diagram of a conversation: a lane for everybody who takes part, a row for everything that was seen.
//
// It is a list to the keyboard and to screen readers: rows are options, the arrow keys choose one. Rows are added one by one;
// all are drawn again only when somebody new appears.

import { el, svg } from './dom.js';
import { micros, shortened, time } from './text.js';

const [TIME_WIDTH, ROW_HEIGHT, HEAD_HEIGHT] = [88, 36, 34];
/** On a telephone more than one lane should be in sight. */
const LANE_WIDTH = matchMedia('(max-width: 40rem)').matches ? 104 : 144;
/** What a letter takes, about. */
const LETTER = 6.3;
/** Lanes that are drawn; whoever comes later shares the last one. */
const LANES_MAX = 24;
const OTHERS = 'others';
const NOBODY = '(nobody)';

export class Sequence {
  /** `chosen(observation)` is told when one is chosen. */
  constructor(chosen) {
    this.chosen = chosen;
    this.root = '';
    this.observations = [];
    this.lanes = [];
    /** Subjects of requests, by where their answers go. */
    this.requests = new Map();
    this.selected = null;
    /** How far the texts of rows go to the right. */
    this.reach = 0;
    this.head = svg('svg', { class: 'heads', 'aria-hidden': 'true' });
    this.list = svg('svg', { role: 'listbox', 'aria-label': 'Messages in the order in which they were seen', onkeydown: (event) => this.key(event) });
    this.element = el('div', { class: 'sequence' }, this.head, this.list);
  }

  /** Shows these instead of what was shown; what was chosen stays chosen. */
  replace(observations) {
    const held = this.selected === null ? undefined : this.observations[this.selected]?.seq;
    const focused = this.list.contains(document.activeElement);
    this.observations = [...observations];
    this.requests.clear();
    this.lanes = [];
    this.observations.forEach((observation) => this.meet(observation));
    this.selected = null;
    this.redraw();
    const again = held === undefined ? -1 : this.observations.findIndex((observation) => observation.seq === held);
    if (again >= 0) this.select(again, { focus: focused, tell: false });
  }

  /** One more was seen; of more than `max` the oldest go. */
  add(observation, max) {
    const below = this.element.scrollHeight - this.element.scrollTop - this.element.clientHeight < 2 * ROW_HEIGHT;
    const lanes = this.lanes.length;
    this.observations.push(observation);
    this.meet(observation);
    if (this.observations.length > max) {
      this.replace(this.observations.slice(-Math.ceil(max * 0.9)));
    } else if (this.lanes.length !== lanes) {
      this.replace(this.observations);
    } else {
      const row = this.row(observation, this.observations.length - 1);
      row.classList.add('fresh');
      this.list.append(row);
      this.size();
    }
    // Who reads at the end goes on reading there; whoever has scrolled up is not moved.
    if (below) this.element.scrollTop = this.element.scrollHeight;
  }

  meet(observation) {
    for (const who of [observation.from, ...(observation.to ?? [])]) {
      if (who && !this.lanes.includes(who) && this.lanes.length < LANES_MAX) this.lanes.push(who);
      else if (who && !this.lanes.includes(who) && !this.lanes.includes(OTHERS)) this.lanes.push(OTHERS);
    }
    if (observation.reply) {
      this.requests.set(observation.reply, observation.subject);
      if (this.requests.size > 4096) this.requests.delete(this.requests.keys().next().value);
    }
  }

  x(who) {
    const at = this.lanes.indexOf(who);
    const lane = at >= 0 ? at : who ? Math.max(this.lanes.indexOf(OTHERS), 0) : 0;
    return TIME_WIDTH + LANE_WIDTH * (lane + 0.5);
  }

  lanesWidth() {
    return TIME_WIDTH + LANE_WIDTH * Math.max(this.lanes.length, 1) + 24;
  }

  width() {
    return Math.max(this.lanesWidth(), this.reach);
  }

  size() {
    const height = this.observations.length * ROW_HEIGHT + 12;
    for (const [element, tall] of [[this.head, HEAD_HEIGHT], [this.list, height]]) {
      element.setAttribute('width', this.width());
      element.setAttribute('height', tall);
    }
    for (const line of this.list.querySelectorAll('.lane')) line.setAttribute('y2', height);
  }

  redraw() {
    this.reach = 0;
    const heads = this.lanes.map((who) => svg('text', { class: 'who', x: this.x(who), y: 22, 'text-anchor': 'middle' }, shortened(who, 22), svg('title', {}, who)));
    this.head.replaceChildren(svg('rect', { class: 'head-ground', width: '100%', height: HEAD_HEIGHT }), ...heads);
    const lines = this.lanes.map((who) => svg('line', { class: 'lane', 'aria-hidden': 'true', x1: this.x(who), x2: this.x(who), y1: 0, y2: 0 }));
    this.list.replaceChildren(...lines, ...this.observations.map((observation, index) => this.row(observation, index)));
    this.size();
  }

  row(observation, index) {
    const [top, middle] = [index * ROW_HEIGHT, index * ROW_HEIGHT + 24];
    const drawn = observation.what === 'published' || observation.what === 'noResponders';
    const [shown, parts] = drawn ? this.arrows(observation, middle) : this.mark(observation, middle);
    const row = svg('g', {
      class: `row ${manner(observation, this.requests)}`,
      role: 'option',
      'aria-selected': 'false',
      'aria-label': this.sentence(observation, shown),
      tabindex: index === 0 ? 0 : -1,
      'data-index': index,
      onclick: () => this.select(index, { focus: true }),
      onfocus: () => { if (this.selected !== index) this.select(index, {}); },
    },
    svg('rect', { class: 'ground', x: 2, y: top + 1, width: '100%', height: ROW_HEIGHT - 2, rx: 4 }),
    svg('text', { class: 'when', x: 8, y: middle - 2 }, `${clock(observation)} `));
    row.append(...parts);
    return row;
  }

  /** The text of a message on its way, and what is drawn. */
  arrows(observation, y) {
    const to = observation.to?.length ? observation.to : [null];
    // Who sent it is not always known; then its arrow begins beside those it goes to.
    const from = observation.from || to[0] === null ? this.x(observation.from) : Math.min(...to.map((who) => this.x(who))) - LANE_WIDTH * 0.4;
    const parts = to.flatMap((who) => {
      const self = who !== null && this.x(who) === from;
      const end = who === null || self ? from + LANE_WIDTH * 0.4 : this.x(who);
      const way = end < from ? -1 : 1;
      const tip = who === null
        ? svg('circle', { class: 'mark', cx: end, cy: y, r: 3 })
        : svg('path', { class: 'tip', d: `M${end} ${y}l${-8 * way} -4v8z` });
      return [svg('line', { class: 'arrow', x1: from, y1: y, x2: end, y2: y }), tip];
    });
    const ends = to.map((who) => (who === null ? from + LANE_WIDTH * 0.4 : this.x(who)));
    const left = Math.min(from, ...ends);
    const room = Math.max(Math.abs(Math.max(from, ...ends) - left), LANE_WIDTH) / LETTER;
    const shown = shortened(this.label(observation), Math.max(Math.floor(room), 28));
    // An arrow to both sides does not say by itself where it comes from.
    if (observation.from) parts.push(svg('circle', { class: 'sender', cx: from, cy: y, r: 3.5 }));
    this.reaches(left + 8, shown);
    return [shown, [svg('text', { x: left + 8, y: y - 6 }, shown), ...parts]];
  }

  /** The text of something that happened to a message, and what is drawn. */
  mark(observation, y) {
    const at = this.x(observation.to?.[0] ?? observation.from);
    const shown = shortened(this.label(observation), 44);
    const long = shown.length * LETTER;
    // At the last lanes there is more room to the left.
    const back = at + 10 + long > this.lanesWidth() && at - 10 - long > TIME_WIDTH;
    if (!back) this.reaches(at + 10, shown);
    const text = back ? { x: at - 10, y, 'text-anchor': 'end' } : { x: at + 10, y };
    return [shown, [svg('circle', { class: 'mark', cx: at, cy: y - 4, r: 5 }), svg('text', text, shown)]];
  }

  reaches(x, text) {
    this.reach = Math.max(this.reach, Math.ceil(x + text.length * LETTER + 12));
  }

  /** A subject without the root that all have; of an answer what it answers. */
  place(observation) {
    const request = this.requests.get(observation.subject);
    const bare = (subject) => (this.root && subject.startsWith(`${this.root}.`) ? subject.slice(this.root.length + 1) : subject);
    return request ? `answer to ${bare(request)}` : bare(observation.subject);
  }

  label(observation) {
    const took = observation.tookUs === undefined ? '' : ` in ${micros(observation.tookUs)}`;
    const attempt = observation.attempt > 1 ? `, attempt ${observation.attempt}` : '';
    const why = observation.reason ? `: ${observation.reason}` : '';
    switch (observation.what) {
      case 'published': return observation.stream && !observation.to?.length ? `${this.place(observation)} (stored in ${observation.stream})` : this.place(observation);
      case 'noResponders': return `nobody answers ${this.place(observation)}`;
      case 'handled': return `${(observation.outcome ?? 'handled').replace('answeredError', 'answered with an error')}${attempt}${took}${why}`;
      case 'deadLettered': return `dead letter${attempt}${why}`;
      case 'redriven': return `sent back to ${this.place(observation)}`;
      case 'gap': return `gap: ${observation.missed ?? 'some'} missing${why}`;
      default: return observation.what;
    }
  }

  /** What a screen reader says of a row: first what is seen there, then what the drawing shows. */
  sentence(observation, shown) {
    const label = this.label(observation);
    const to = observation.to?.length ? observation.to.join(', ') : NOBODY;
    const who = observation.what === 'published' ? `${observation.from ?? 'somebody'} to ${to}` : observation.to?.length ? to : observation.from;
    const rest = [label === shown ? null : label, who, observation.type];
    return [`${clock(observation)} ${shown}`, ...rest.filter(Boolean)].join(', ');
  }

  rowAt(index) {
    return this.list.querySelector(`[data-index="${index}"]`);
  }

  select(index, { focus = false, tell = true } = {}) {
    const row = this.rowAt(index);
    if (!row) return;
    for (const other of this.list.querySelectorAll('[tabindex="0"], [aria-selected="true"]')) {
      other.setAttribute('tabindex', -1);
      other.setAttribute('aria-selected', 'false');
    }
    this.selected = index;
    row.setAttribute('tabindex', 0);
    row.setAttribute('aria-selected', 'true');
    if (focus) row.focus();
    if (tell) this.chosen(this.observations[index]);
  }

  key(event) {
    const last = this.observations.length - 1;
    const at = this.selected ?? -1;
    const to = { ArrowDown: Math.min(at + 1, last), ArrowUp: Math.max(at - 1, 0), Home: 0, End: last, PageDown: Math.min(at + 10, last), PageUp: Math.max(at - 10, 0) }[event.key];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.select(to, { focus: true });
  }
}

/** When it was over: handling takes its time, and is seen at its end. */
function clock({ time: began, tookUs }) {
  const over = tookUs === undefined ? began : new Date(Date.parse(began) + tookUs / 1000).toISOString();
  return time(over).slice(-12);
}

/** How a row is drawn: as trouble, a retry, an answer, or as it is. */
function manner(observation, requests) {
  if (['deadLettered', 'noResponders', 'gap'].includes(observation.what)) return 'trouble';
  if (['terminated', 'answeredError', 'cancelled'].includes(observation.outcome)) return 'trouble';
  if (observation.attempt > 1 || observation.outcome === 'nacked' || observation.what === 'redriven') return 'retry';
  return requests.has(observation.subject) ? 'answer' : '';
}
