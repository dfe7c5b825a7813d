-- Whether requests on these subjects are answered by anybody.
-- KEYS: stream; in a cluster also all others. ARGV: subjects. Answers 1 or 0 for each.
local now, answers = clock(), {}
for _, subject in ipairs(ARGV) do
  answers[#answers + 1] = answered(KEYS[1], subject, now) and 1 or 0
end
return answers
