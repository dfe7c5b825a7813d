-- Leaves a queue group; the last one takes it away. KEYS: stream; in a cluster also all others. ARGV: group, member.
local stream, group = KEYS[1], ARGV[1]
local members = stream .. ':queue:' .. group
redis.call('ZREM', members, ARGV[2])
redis.call('ZREMRANGEBYSCORE', members, '-inf', clock())
if redis.call('ZCARD', members) == 0 then
  redis.call('HDEL', stream .. ':queues', group)
end
return 1
