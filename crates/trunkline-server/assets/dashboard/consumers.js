// Consumers of all streams.

import { get } from './api.js';
import { Problem, Table, el, heading } from './dom.js';
import { poll } from './live.js';
import { duration, number } from './text.js';

export function show(main, { signal }) {
  const problem = new Problem();
  const note = el('p', { class: 'note' });
  const table = new Table('Consumers by stream', [
    { title: 'Stream', header: true, cell: (row) => row.stream },
    { title: 'Consumer', cell: (row) => row.name },
    { title: 'Lag', number: true, cell: (row) => number(row.lag) },
    { title: 'Pending', number: true, cell: (row) => number(row.pending) },
    { title: 'Oldest pending', number: true, cell: (row) => duration(row.oldestPendingMs) },
    { title: 'Redelivered', number: true, cell: (row) => number(row.redelivered) },
    { title: 'Missed', number: true, cell: (row) => number(row.missed) },
    { title: 'Members', number: true, cell: (row) => el('span', { class: row.members === 0 && (row.lag > 0 || row.pending > 0) ? 'bad word' : null }, number(row.members)) },
    { title: 'Filter', wide: true, cell: (row) => row.filter ?? '–' },
    { title: 'Dead letters', cell: (row) => el('a', { href: `#/dead-letters?stream=${encodeURIComponent(row.stream)}&consumer=${encodeURIComponent(row.name)}` }, 'show', el('span', { 'aria-hidden': 'true' }, ' →')) },
  ], 'No stream has a consumer so far.', (row) => `${row.stream}/${row.name}`);
  main.append(heading('Consumers'), problem.element, note, table.element);
  poll(async () => {
    const { consumers, total } = await get('consumers', {}, signal);
    note.textContent = total > consumers.length ? `${number(consumers.length)} of ${number(total)} are shown.` : '';
    table.show(consumers);
  }, signal, problem);
}
