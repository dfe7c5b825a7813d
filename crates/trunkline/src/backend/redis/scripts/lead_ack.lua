-- Leads a transaction in which a plain XACK follows, and then a RENAME of the last key to the first: many ids in a script
-- cost the server twice what they cost in a command.
-- KEYS: stream, hash of the consumer, a key of the stream that nobody uses. ARGV: identity of the consumer, how often
-- deliveries were lost as the member knows.
-- Answers {1 if both are so, how often deliveries were lost by now}. If they are not, the stream is out of the way while
-- the XACK runs, which then finds nothing to acknowledge; the RENAME brings it back before anybody else can look.
local known = redis.pcall('HMGET', KEYS[2], 'identity', 'fence')
local fence = known[2] or '0'
if known[1] == ARGV[1] and fence == ARGV[2] then
  return { 1, tonumber(fence) }
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('RENAME', KEYS[1], KEYS[3])
end
return { 0, tonumber(fence) }
