-- Applies the limits of a stream and tells how it stands.
-- KEYS: stream. ARGV: max_messages, max_age in ms, max_bytes; 0 for none.
-- Answers {messages, bytes, first id kept or '', last id ever, names of its consumers}.
local stream = KEYS[1]
if redis.call('EXISTS', stream) == 0 then
  return { 0, 0, '', '0-0', redis.call('SMEMBERS', stream .. ':consumers') }
end
if ARGV[1] ~= '0' then
  redis.call('XTRIM', stream, 'MAXLEN', ARGV[1])
end
if ARGV[2] ~= '0' then
  trim_age(stream, clock() - tonumber(ARGV[2]), math.huge)
end
if ARGV[3] ~= '0' then
  trim_bytes(stream, tonumber(ARGV[3]))
end
local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)
return {
  redis.call('XLEN', stream),
  redis.call('MEMORY', 'USAGE', stream) or 0,
  first[1] and first[1][1] or '',
  last_id(stream),
  redis.call('SMEMBERS', stream .. ':consumers'),
}
