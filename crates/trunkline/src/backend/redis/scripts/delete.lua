-- Takes single messages out of a stream. They are given to nobody any more, and nobody misses them: their running
-- numbers are kept, so that the gap they leave is known for what it is.
-- KEYS: stream. ARGV: most ranges of numbers to keep, then the ids. Answers how many of them there were.
local stream = KEYS[1]
local deleted = stream .. ':deleted'
local consumers = redis.call('SMEMBERS', stream .. ':consumers')

-- Numbers that follow each other are one range, scored by its end: what is purged from one end on is a single one.
local function keep_number(n)
  local first, last = n, n
  local before = redis.call('ZRANGEBYSCORE', deleted, n - 1, n - 1)[1]
  if before then
    first = tonumber(string.match(before, '^(%d+)'))
    redis.call('ZREM', deleted, before)
  end
  local after = redis.call('ZRANGEBYSCORE', deleted, n, '+inf', 'LIMIT', 0, 1)[1]
  if after and tonumber(string.match(after, '^(%d+)')) == n + 1 then
    last = tonumber(string.match(after, '(%d+)$'))
    redis.call('ZREM', deleted, after)
  end
  redis.call('ZADD', deleted, last, string.format('%d-%d', first, last))
end

local count = 0
for i = 2, #ARGV do
  local id = ARGV[i]
  local entry = redis.call('XRANGE', stream, id, id)[1]
  if entry then
    -- What somebody else than the bus wrote has no number.
    local n = field(entry, 'm') ~= '' and number_of(id)
    redis.call('XDEL', stream, id)
    count = count + 1
    if n then
      keep_number(n)
    end
    for _, name in ipairs(consumers) do
      local identity = redis.call('HGET', stream .. ':consumer:' .. name, 'identity')
      if identity and redis.pcall('XACK', stream, group_of(name, identity), id) == 1 then
        redis.call('HINCRBY', stream .. ':consumer:' .. name, 'fence', 1)
      end
      redis.call('ZREM', stream .. ':due:' .. name, pad(id))
    end
  end
end
-- The oldest ranges go first. Who has not read that far by then counts their messages as missed.
redis.call('ZREMRANGEBYRANK', deleted, 0, -1 - ARGV[1])
return count
