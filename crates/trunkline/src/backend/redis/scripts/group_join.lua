-- Joins a queue group of live subscriptions. A group that the last member has left, or of which nobody was heard for a
-- minute, starts anew, now. Until then members that are late may come back: what they were not given, nobody was.
-- KEYS: stream; in a cluster also all others. ARGV: group, member, ms until its entry ends. Answers {last id ever, messages ever added}.
local stream, group = KEYS[1], ARGV[1]
local members, queues = stream .. ':queue:' .. group, stream .. ':queues'
local now, last = clock(), ends(stream)
if redis.call('EXISTS', members) == 0 or redis.call('HEXISTS', queues, group) == 0 then
  redis.call('HSET', queues, group, last .. ' - - ' .. string.format('%d', now))
end
redis.call('ZREMRANGEBYSCORE', members, '-inf', now)
redis.call('PEXPIRE', queues, 604800000)
redis.call('ZADD', members, now + ARGV[3], ARGV[2])
redis.call('PEXPIRE', members, ARGV[3] * 10)
return { last, added(stream) }
