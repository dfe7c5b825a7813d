// Connections of clients, and those that ended.

import { get } from './api.js';
import { Problem, Table, el, heading } from './dom.js';
import { Rates, poll } from './live.js';
import { bytes, duration, micros, number, rate, shortened, time } from './text.js';

const LIMIT = 200;
/** How they can be sorted: what the server calls it, and what people read. */
const SORTS = [['', 'oldest first'], ['pending', 'most waiting'], ['denied', 'most denied'], ['received', 'most from it'], ['sent', 'most to it'], ['subscriptions', 'most subscriptions']];

export function show(main, { signal }) {
  const problem = new Problem();
  const note = el('p', { class: 'note said', role: 'status' });
  const find = el('input', { name: 'find', type: 'search', autocomplete: 'off', oninput: () => { offset = 0; } });
  const sort = el('select', { name: 'sort', onchange: () => turn(-offset) }, SORTS.map(([value, title]) => el('option', { value }, title)));
  const before = el('button', { type: 'button', hidden: true, onclick: () => turn(-LIMIT) }, 'Previous');
  const after = el('button', { type: 'button', hidden: true, onclick: () => turn(LIMIT) }, 'Next');
  let offset = 0;
  const [from, to] = [new Rates(), new Rates()];
  let [fromRates, toRates] = [new Map(), new Map()];
  const who = [
    { title: 'Client', header: true, wide: true, cell: (row) => row.name ?? `#${row.id}` },
    { title: 'User', cell: (row) => shortened(row.user ?? '–', 40) },
    { title: 'Address', cell: (row) => row.address },
    { title: 'Library', cell: (row) => [row.library ?? '–', row.kind === 'websocket' ? ' (WebSocket)' : ''] },
  ];
  const denied = { title: 'Denied', number: true, cell: (row) => el('span', { class: row.denied > 0 ? 'bad word' : null }, number(row.denied)) };
  const open = new Table('Open connections', [
    ...who,
    { title: 'From it', number: true, cell: (row) => rate(fromRates.get(row.id) ?? 0) },
    { title: 'To it', number: true, cell: (row) => rate(toRates.get(row.id) ?? 0) },
    { title: 'Messages from / to', number: true, cell: (row) => `${number(row.receivedMessages)} / ${number(row.sentMessages)}` },
    { title: 'Waiting', number: true, cell: (row) => bytes(row.pendingBytes) },
    { title: 'Subscriptions', number: true, cell: (row) => number(row.subscriptions) },
    denied,
    { title: 'Round trip', number: true, cell: (row) => micros(row.rttMicros) },
    { title: 'Idle', number: true, cell: (row) => duration(row.idleMs) },
    { title: 'Since', number: true, cell: (row) => time(row.since) },
  ], 'No client is connected. Components in the process of the bus need no connection.');
  const closed = new Table('The last connections that ended', [
    ...who,
    { title: 'Why', cell: (row) => el('span', { class: row.reason === 'slow_consumer' ? 'bad word' : null }, (row.reason ?? '').replaceAll('_', ' ')) },
    { title: 'Messages from / to', number: true, cell: (row) => `${number(row.receivedMessages)} / ${number(row.sentMessages)}` },
    denied,
    { title: 'Ended', number: true, cell: (row) => time(row.ended) },
  ], 'None has ended so far.');
  const filter = el('form', { class: 'filters', role: 'search', onsubmit: (event) => { event.preventDefault(); turn(-offset); } },
    el('label', {}, 'Name, user or address has', find), el('label', {}, 'Order', sort), el('button', { type: 'submit' }, 'Show'));
  main.append(heading('Connections'), problem.element, filter, note, open.element, el('p', { class: 'more' }, before, ' ', after), el('h3', {}, 'Ended'), closed.element);

  async function refresh() {
    const answer = await get('connections', { limit: LIMIT, offset: offset || undefined, find: find.value.trim(), sort: sort.value }, signal);
    const shown = answer.connections.length;
    note.textContent = !answer.known
      ? 'Clients are with the NATS servers themselves, which know about them (their /connz).'
      : shown === answer.total ? `${number(answer.total)} in all.` : `${number(offset + Math.min(shown, 1))} to ${number(offset + shown)} of ${number(answer.total)}.`;
    before.hidden = offset === 0;
    after.hidden = offset + shown >= answer.total;
    const key = (row) => row.id;
    fromRates = from.of(answer.connections, key, (row) => row.receivedMessages);
    toRates = to.of(answer.connections, key, (row) => row.sentMessages);
    open.show(answer.connections);
    closed.show(answer.closed);
  }

  function turn(by) {
    offset = Math.max(0, offset + by);
    refresh().catch((error) => { if (!signal.aborted) problem.show(error); });
  }

  poll(refresh, signal, problem);
}
