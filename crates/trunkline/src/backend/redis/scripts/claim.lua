-- Claims, for queue groups of live subscriptions, everything up to an id.
-- Of a group the hash `queues` has its cursor as `CURSOR FORMER MEMBER MS`: up to where everything was given to somebody, and who moved
-- it from where (`- -`: nobody yet), and when. Of each member it has, under `GROUP MEMBER`, what it claimed last as `TO AFTER MS`, or
-- as `TO LOST MS` where that claim made the group anew: a member that asks again, because an answer was lost, is told the same, whoever
-- has claimed since.
-- KEYS: stream; in a cluster also all others. ARGV: for each group: group, member, id, id of the first message that is wanted or ''.
-- Answers for each {AFTER, id}: all after that id is the member's; {TAKEN, id}: others have all up to that id; {WAIT, ''}:
-- it is another's turn; {LOST, ''}: there was no such group.
local stream = KEYS[1]
local queues = stream .. ':queues'
local now = clock()
even_when_full(stream .. ':queue:' .. ARGV[1])
-- The member that claimed last leaves it to the others for so many ms, also of what is new, so that all of them get some.
local turn = 3

local answers = {}
for i = 1, #ARGV, 4 do
  local group, member, id, first = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local own = group .. ' ' .. member
  local records = redis.call('HMGET', queues, group, own)
  local cursor, former, by, at = string.match(records[1] or '', '^(%S+) ?(%S*) ?(%S*) ?(%S*)$')
  local to, after = string.match(records[2] or '', '^(%S+) (%S+)')
  local answer
  if not cursor then
    local ms = string.format('%d', now)
    answer = { 'LOST', '' }
    redis.call('HSET', queues, group, id .. ' - - ' .. ms, own, id .. ' LOST ' .. ms)
  elseif id == to then
    answer = after == 'LOST' and { 'LOST', '' } or { 'AFTER', after }
  elseif pad(id) <= pad(cursor) then
    answer = (id == cursor and by == member) and { 'AFTER', former } or { 'TAKEN', cursor }
  elseif first ~= '' and by == member and now - math.max(tonumber(string.match(first, '^%d+')), tonumber(at)) < turn
    and redis.call('ZCOUNT', stream .. ':queue:' .. group, now, '+inf') > 1 then
    answer = { 'WAIT', '' }
  else
    answer = { 'AFTER', cursor }
    local ms = string.format('%d', now)
    redis.call('HSET', queues, group, id .. ' ' .. cursor .. ' ' .. member .. ' ' .. ms, own, id .. ' ' .. cursor .. ' ' .. ms)
  end
  answers[#answers + 1] = answer
end
redis.call('PEXPIRE', queues, 604800000)
return answers
