-- Leaves a queue group; the last one takes it away. KEYS: stream. ARGV: group, process.
local stream, group = KEYS[1], 'q:' .. ARGV[1]
local members = stream .. ':queue:' .. ARGV[1]
redis.call('ZREM', members, ARGV[2])
redis.call('ZREMRANGEBYSCORE', members, '-inf', clock())
if redis.call('ZCARD', members) == 0 then
  redis.pcall('XGROUP', 'DESTROY', stream, group)
else
  redis.pcall('XGROUP', 'DELCONSUMER', stream, group, ARGV[2])
end
return 1
