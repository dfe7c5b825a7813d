-- Forgets queue groups whose members are all gone, and what members that are gone have claimed.
-- KEYS: stream; in a cluster also all others. ARGV: ms since the last claim, then names in the hash `queues`.
-- Answers how many were forgotten.
local stream = KEYS[1]
local queues = stream .. ':queues'
local now, age = clock(), tonumber(ARGV[1])

local listed = {}
local function is_listed(group, member)
  if not listed[group] then
    listed[group] = {}
    for _, name in ipairs(redis.call('ZRANGEBYSCORE', stream .. ':queue:' .. group, now, '+inf')) do
      listed[group][name] = true
    end
  end
  return listed[group][member]
end

local gone = {}
for i = 2, #ARGV do
  local pattern, queue, member = string.match(ARGV[i], '^(%S+) (%S+) ?(%S*)$')
  local at = pattern and string.match(redis.call('HGET', queues, ARGV[i]) or '', ' (%d+)$')
  if at and now - tonumber(at) > age then
    local group = pattern .. ' ' .. queue
    if member ~= '' and not is_listed(group, member)
      or member == '' and redis.call('EXISTS', stream .. ':queue:' .. group) == 0 then
      gone[#gone + 1] = ARGV[i]
    end
  end
end
if #gone > 0 then
  redis.call('HDEL', queues, unpack(gone))
end
return #gone
