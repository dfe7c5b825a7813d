// The bus at a glance.

import { health } from './api.js';
import { Chart } from './chart.js';
import { Problem, el, facts, heading } from './dom.js';
import { poll } from './live.js';
import { bytes, duration, micros, number, rate, tone } from './text.js';

/** Kept from visit to visit, so that the charts do not begin anew. */
const charts = {
  published: new Chart('Messages published', rate),
  delivered: new Chart('Messages delivered', rate),
  latency: new Chart('Latency', micros),
  cpu: new Chart('Processor', (value) => `${value.toFixed(1)} %`),
};
let followed = null;

/** Gives the charts each beat once, whether or not they are shown. */
function follow(pulse) {
  if (followed === pulse) return;
  followed = pulse;
  for (const chart of Object.values(charts)) chart.points = [];
  pulse.addEventListener('beat', () => {
    const overview = pulse.error ? null : pulse.now.overview;
    charts.published.add(pulse.rate((now) => now.messages.published));
    charts.delivered.add(pulse.rate((now) => now.messages.delivered));
    charts.latency.add(overview?.latency?.medianMicros ?? overview?.clients?.rttMedianMicros ?? null);
    charts.cpu.add(overview ? overview.process.cpuPercent : null);
  });
}

export function show(main, { pulse, signal }) {
  follow(pulse);
  const problem = new Problem();
  const readiness = el('section', { class: 'card' });
  const backend = el('section', { class: 'card' });
  const messages = el('section', { class: 'card' });
  const clients = el('section', { class: 'card' });
  const process = el('section', { class: 'card' });
  main.append(
    heading('Overview'),
    problem.element,
    el('div', { class: 'cards charts' }, Object.values(charts).map((chart) => chart.element)),
    el('div', { class: 'cards' }, readiness, backend, messages, clients, process),
  );

  const draw = () => {
    if (!pulse.now) return;
    const { overview } = pulse.now;
    charts.latency.rename(latencyTitle(overview));
    charts.delivered.rename(deliveredTitle(overview));
    backend.replaceChildren(el('h3', {}, 'Backend'), ...backendFacts(overview));
    messages.replaceChildren(el('h3', {}, 'Messages since the start'), messageFacts(overview.messages));
    clients.replaceChildren(el('h3', {}, 'Clients'), clientFacts(overview.clients));
    process.replaceChildren(el('h3', {}, 'Process'), processFacts(overview));
  };
  pulse.addEventListener('beat', draw, { signal });
  draw();
  poll(async () => {
    const document = await health(signal);
    readiness.replaceChildren(el('h3', {}, 'Health'), ...healthFacts(document));
  }, signal, problem);
}

function word(state) {
  return el('span', { class: `word ${tone(state)}` }, state);
}

/** Only a hub sees all deliveries. */
function deliveredTitle({ backend, clients }) {
  if (backend.name === 'in_memory') return 'Messages delivered';
  return clients ? 'Messages delivered to clients of this server' : 'Messages delivered to this process';
}

function latencyTitle({ latency, clients }) {
  if (latency) return 'Latency of requests, median';
  return clients ? 'Round trip to clients, median' : 'Latency (not known here)';
}

function healthFacts(document) {
  const checks = Object.entries(document.checks ?? {}).map(([name, check]) => {
    const why = [check.state !== check.status ? check.state : null, check.reason].filter(Boolean).join(': ');
    return [name, [word(check.status), why ? ` ${why}` : '']];
  });
  return [el('p', { class: 'figure' }, word(document.status)), document.reason ? el('p', {}, document.reason) : null, facts(checks)].filter(Boolean);
}

function backendFacts({ backend, subjectRoot }) {
  return [
    el('p', { class: 'figure' }, backend.name, ' ', word(backend.state)),
    facts([['why', backend.reason], ['server', backend.server], ['since', duration(Date.now() - Date.parse(backend.since))], ['subjects', `${subjectRoot}.>`]]),
  ];
}

function messageFacts(messages) {
  return facts([
    ['published', number(messages.published)],
    ['delivered here', number(messages.delivered)],
    ['redelivered here', number(messages.redelivered)],
    ['dead letters of here', number(messages.deadLetters)],
    ['nobody answered', number(messages.noResponders)],
    ['dropped', number(messages.dropped)],
  ]);
}

function clientFacts(clients) {
  if (!clients) return el('p', { class: 'note' }, 'Clients are with the NATS servers, which know about them.');
  return facts([
    ['connections', number(clients.connections)],
    ['subscriptions', number(clients.subscriptions)],
    ['messages denied', number(clients.deniedMessages)],
    ['subscriptions denied', number(clients.deniedSubscriptions)],
    ['failed log-ins', number(clients.authFailures)],
    ['refused', number(clients.refusedConnections)],
    ['slow consumers', number(clients.slowConsumers)],
    ['longest round trip', micros(clients.rttMaxMicros)],
  ]);
}

function processFacts({ process, uptimeSeconds, version }) {
  const limit = process.bufferBytesMax ? ` of ${bytes(process.bufferBytesMax)}` : '';
  return facts([
    ['version', version],
    ['up for', duration(uptimeSeconds * 1000)],
    ['memory', bytes(process.residentBytes)],
    ['buffers', process.bufferBytes === null ? null : bytes(process.bufferBytes) + limit],
    ['processor', `${process.cpuPercent.toFixed(1)} %`],
  ]);
}
