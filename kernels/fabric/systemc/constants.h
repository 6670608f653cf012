// Constants of a cycle model by their names, for programs that run it beside its SystemC model: NAME=VALUE sets one in both, systemc.NAME or
// plain.NAME in one of them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>
#include <type_traits>
#include <variant>

namespace hetrun::fabric {

using Constants = std::map<std::string, std::variant<int64_t*, uint32_t*>>;

inline bool set_constant(const Constants& constants, const std::string& name, long long value) {
    const auto found = constants.find(name);
    if (found == constants.end()) return false;
    std::visit([&](auto* constant) { *constant = static_cast<std::remove_pointer_t<decltype(constant)>>(value); }, found->second);
    return true;
}

// False for an argument that is not of the form, or names no constant.
inline bool set_constant(const std::string& argument, const Constants& systemc, const Constants& plain) {
    const size_t equals = argument.find('=');
    if (equals == std::string::npos) return false;
    const std::string name = argument.substr(0, equals);
    const long long value = std::atoll(argument.c_str() + equals + 1);
    const std::string one = "systemc.", other = "plain.";
    if (name.rfind(one, 0) == 0) return set_constant(systemc, name.substr(one.size()), value);
    if (name.rfind(other, 0) == 0) return set_constant(plain, name.substr(other.size()), value);
    return set_constant(systemc, name, value) && set_constant(plain, name, value);
}

}  // namespace hetrun::fabric
