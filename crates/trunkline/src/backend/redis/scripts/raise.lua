-- Has nobody act here by routes older than this version. KEYS: version known here. ARGV: version.
if tonumber(redis.call('GET', KEYS[1]) or 0) < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[1], ARGV[1])
end
return 1
