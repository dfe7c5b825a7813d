// Connections of clients, and those that ended.

import { get } from './api.js';
import { Problem, Table, el, heading } from './dom.js';
import { Rates, poll } from './live.js';
import { bytes, duration, micros, number, rate, time } from './text.js';

const LIMIT = 200;

export function show(main, { signal }) {
  const problem = new Problem();
  const note = el('p', { class: 'note' });
  const [from, to] = [new Rates(), new Rates()];
  let [fromRates, toRates] = [new Map(), new Map()];
  const who = [
    { title: 'Client', header: true, cell: (row) => row.name ?? `#${row.id}` },
    { title: 'User', cell: (row) => row.user ?? '–' },
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
  main.append(heading('Connections'), problem.element, note, open.element, el('h3', {}, 'Ended'), closed.element);
  poll(async () => {
    const answer = await get('connections', { limit: LIMIT }, signal);
    note.textContent = !answer.known
      ? 'Clients are with the NATS servers themselves, which know about them (their /connz).'
      : answer.total > answer.connections.length ? `${number(answer.connections.length)} of ${number(answer.total)} are shown.` : '';
    const key = (row) => row.id;
    fromRates = from.of(answer.connections, key, (row) => row.receivedMessages);
    toRates = to.of(answer.connections, key, (row) => row.sentMessages);
    open.show(answer.connections);
    closed.show(answer.closed);
  }, signal, problem);
}
