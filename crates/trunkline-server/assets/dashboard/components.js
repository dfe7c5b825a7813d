// What `up` runs beside the bus.

import { get } from './api.js';
import { Problem, Table, el, heading } from './dom.js';
import { poll } from './live.js';
import { number, time, tone } from './text.js';

export function show(main, { signal }) {
  const problem = new Problem();
  const note = el('p', { class: 'note said' });
  const table = new Table('Components of trunkline up', [
    { title: 'Component', header: true, cell: (row) => row.name },
    { title: 'State', cell: (row) => el('span', { class: `word ${tone(row.state)}` }, row.state) },
    { title: 'Why', wide: true, cell: (row) => [row.reason ?? '', row.waitingFor?.length ? `waits for ${row.waitingFor.join(', ')}` : '', row.restartAt ? ` starts again at ${time(row.restartAt)}` : ''] },
    { title: 'Process', number: true, cell: (row) => row.pid ?? '–' },
    { title: 'Restarts', number: true, cell: (row) => number(row.restarts) },
    { title: 'Since', number: true, cell: (row) => time(row.since) },
  ], 'The configuration names no components.');
  main.append(heading('Components'), problem.element, note, table.element);
  poll(async () => {
    const { components, resources } = await get('components', {}, signal);
    note.textContent = `${number(resources.workerThreads)} threads do the work of the bus.`;
    table.show(components);
  }, signal, problem);
}
