// One conversation: its diagram, which grows as it happens, and the message that is chosen.

import { follow, get } from './api.js';
import { Problem, el, facts, heading } from './dom.js';
import { pause } from './live.js';
import { Sequence } from './sequence.js';
import { body, bytes, count, duration, micros, number, shortened, time, tone } from './text.js';

/** Observations that the page keeps; older ones make room. */
const KEPT = 2000;
/** Pause before the record is read again, after the server ended or broke off what was followed. */
const AGAIN = 1000;

export function show(main, { signal, rest, pulse }) {
  const id = rest.join('/');
  const problem = new Problem();
  const summary = el('p', { class: 'note said' });
  const live = el('p', { class: 'note said', role: 'status' });
  const detail = el('aside', { class: 'detail', 'aria-label': 'The chosen message' }, el('p', { class: 'note' }, 'Choose a message with the mouse, or with the arrow keys in the diagram.'));
  const sequence = new Sequence((observation) => detail.replaceChildren(...details(observation)));
  main.append(
    heading(`Conversation ${shortened(id, 60)}`, el('a', { href: '#/conversations' }, 'All conversations')),
    problem.element, summary, live,
    el('div', { class: 'split' }, sequence.element, detail),
  );
  run(id, { signal, pulse, problem, summary, live, sequence });
}

async function run(id, { signal, pulse, problem, summary, live, sequence }) {
  // Subjects are shown without their root, which the first beat tells.
  if (!pulse.now) await new Promise((beaten) => pulse.addEventListener('beat', beaten, { once: true, signal }));
  sequence.root = pulse.now?.overview.subjectRoot ?? '';
  while (!signal.aborted) {
    try {
      const record = await get(`conversations/${encodeURIComponent(id)}`, {}, signal);
      problem.show(null);
      summarize(summary, record.summary);
      const observations = record.observations.slice(-KEPT);
      sequence.replace(observations);
      const state = { summary: record.summary, omitted: record.observations.length - observations.length };
      live.textContent = 'Following live.';
      const after = record.observations.at(-1)?.seq ?? 0;
      await follow({ conversation: id, after }, {
        seen: (observation) => {
          reckon(state.summary, observation);
          summarize(summary, state.summary);
          sequence.add(observation, KEPT);
        },
        missed: (missed) => sequence.add({ what: 'gap', time: new Date().toISOString(), subject: '', missed, reason: 'this page did not keep up' }, KEPT),
      }, signal);
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 401) return window.dispatchEvent(new CustomEvent('refused', { detail: error }));
      // A stream that broke off is no reason to alarm anybody: the record is read again.
      if (error.status !== undefined) problem.show(error);
    }
    live.textContent = 'Not following now; trying again.';
    await pause(AGAIN, signal);
  }
}

/** What the server would count; the next reading of the record corrects it. */
function reckon(summary, observation) {
  summary.last = observation.time;
  if (observation.what === 'published') {
    summary.messages += 1;
    summary.bytes += observation.size ?? 0;
  }
  if (observation.what === 'handled' && observation.attempt > 1) summary.retries += 1;
  if (observation.what === 'deadLettered') summary.deadLetters += 1;
  if (observation.what === 'gap') summary.gaps += 1;
}

function summarize(element, summary) {
  const parts = [
    `${count(summary.messages, 'message', 'messages')}, ${bytes(summary.bytes)}`,
    `began ${time(summary.first)}`,
    `took ${duration(Date.parse(summary.last) - Date.parse(summary.first))}`,
    summary.retries ? count(summary.retries, 'retry', 'retries') : null,
    summary.deadLetters ? count(summary.deadLetters, 'dead letter', 'dead letters') : null,
    summary.gaps ? count(summary.gaps, 'gap', 'gaps') : null,
    summary.omitted ? `${number(summary.omitted)} are not in the record any more` : null,
  ];
  element.replaceChildren(el('span', { class: `word ${tone(summary.state)}` }, summary.state), ` · ${parts.filter(Boolean).join(' · ')}`);
}

function details(observation) {
  const payload = body(observation.body);
  const place = [observation.stream, observation.consumer].filter(Boolean).join(' / ');
  return [
    el('h3', {}, observation.type ?? observation.what),
    facts([
      ['what', observation.what], ['time', time(observation.time)], ['subject', observation.subject], ['from', observation.from],
      ['to', (observation.to ?? []).join(', ')], ['outcome', observation.outcome], ['attempt', observation.attempt],
      ['why', observation.reason], ['missed', observation.missed], ['waited', observation.waitedUs === undefined ? null : micros(observation.waitedUs)],
      ['took', observation.tookUs === undefined ? null : micros(observation.tookUs)], ['size', observation.size ? bytes(observation.size) : null],
      ['stream', place], ['offset', observation.offset], ['reply', observation.reply], ['persona', observation.personaId], ['tool', observation.toolId],
      ['skill', observation.skillId], ['id', observation.id], ['cause', observation.causationId], ['correlation', observation.correlationId], ['trace', observation.traceId],
    ]),
    ...(payload === null ? [] : [el('h3', {}, 'Payload'), el('pre', { class: 'payload', tabindex: 0, 'aria-label': 'Payload' }, payload)]),
  ];
}
