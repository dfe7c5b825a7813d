-- Joins a queue group of live subscriptions. A group whose members are all gone starts anew, now.
-- KEYS: stream; in a cluster also all others. ARGV: group, member, ms until its entry ends. Answers {last id ever, messages ever added}.
local stream, group = KEYS[1], ARGV[1]
local members, queues = stream .. ':queue:' .. group, stream .. ':queues'
local now, last = clock(), last_id(stream)
redis.call('ZREMRANGEBYSCORE', members, '-inf', now)
if redis.call('ZCARD', members) == 0 or redis.call('HEXISTS', queues, group) == 0 then
  redis.call('HSET', queues, group, last)
end
redis.call('PEXPIRE', queues, 86400000)
redis.call('ZADD', members, now + ARGV[3], ARGV[2])
redis.call('PEXPIRE', members, ARGV[3] * 10)
return { last, added(stream) }
