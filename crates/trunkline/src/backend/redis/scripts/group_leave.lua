-- Leaves a queue group; the last one takes it away. KEYS: stream; in a cluster also all others. ARGV: group, member.
local stream, group = KEYS[1], ARGV[1]
local members, queues = stream .. ':queue:' .. group, stream .. ':queues'
redis.call('HDEL', queues, group .. ' ' .. ARGV[2])
redis.call('ZREM', members, ARGV[2])
redis.call('ZREMRANGEBYSCORE', members, '-inf', clock())
if redis.call('ZCARD', members) == 0 then
  redis.call('HDEL', queues, group)
end
return 1
